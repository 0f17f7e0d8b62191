"""What this machine is and which studies it can run.

It asks no network: sizes are those that studies state and that local files have.
"""

import os
import platform
import shutil

import psutil

from cba_utils import BLAS
from cba_utils.answering.sources import at_precision
from cba_utils.names import CONFIG, PROJECT
from cba_utils.study.browser import find_browser
from cba_utils.study.estimate import duration, estimate, is_hub_id
from cba_utils.study.protocol import cells, read_study


def examine():
    """Lines about the machine, and one for each study in ``config/``.

    Returns
    -------
    list of (str, str)
        What was looked at, and what was found.

    Examples
    --------
    >>> dict(examine())["python"].count(".")
    2
    """
    import mlx.core as mx

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(PROJECT)
    found = [
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("python", platform.python_version()),
        ("backend", _backend(mx)),
        ("BLAS", BLAS.removeprefix("BLAS: ")),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
        ("disk", f"{disk.free / 1e9:.1f} GB free where results go"),
        (
            "browser",
            find_browser() or "no Chromium: the browser tests are skipped, and there is no PDF",
        ),
    ]
    for path in sorted(CONFIG.glob("*.yml")):
        found.append((f"study {path.stem}", _verdict(path, memory.available, disk.free)))
    return found


def _backend(mx):
    device = mx.default_device()
    if device == mx.Device(mx.cpu):
        return f"MLX {mx.__version__} on the CPU, dense fp32 products"
    products = "dense bf16 products" if mx.cuda.is_available() else "native kernels"
    return f"MLX {mx.__version__} on {mx.device_info().get('device_name', device)}, {products}"


def _verdict(path, memory, disk):
    """Whether a study can run here, and in about what time."""
    try:
        study = read_study(path)
        needs = estimate(study)
    except (ValueError, OSError) as error:
        return f"not now: {str(error).removeprefix(f'{path}: ')}"
    remote = sorted(
        {
            name
            for cell in cells(study)
            if is_hub_id(name := at_precision(cell.model, cell.precision))
        }
    )
    hub = f"; needs the hub for {', '.join(remote)}" if remote else ""
    if needs["unknown"]:
        return f"cannot tell: not known is {'; '.join(needs['unknown'])}{hub}"
    takes = (
        f"{needs['cells']} cells, about {needs['memory'] / 1e9:.1f} GB of memory, "
        f"{needs['disk'] / 1e9:.1f} GB of disk, {duration(needs['seconds'])}"
    )
    if needs["memory"] > memory:
        return f"too large for the free memory ({takes})"
    if needs["disk"] > disk:
        return f"too large for the free disk ({takes})"
    return f"can run: {takes}{hub}"
