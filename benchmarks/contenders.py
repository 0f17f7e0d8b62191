"""Ways to get the same answers, each in a process of its own.

``python -m benchmarks.contenders NAME JOB`` loads what it needs from the job file, warms up, prints
``ready``, and then, for every line it reads, does the work once and prints the seconds it took.
The loops get token ids. The batched and the cached scorer begin with the questions' texts, as ours
does, because at this speed templates and tokens are a good part of the work.
"""

import json
import resource
import sys
import time
from pathlib import Path

SYSTEM = "Answer with only the letter A, B, or C."
# Not those of cba_utils.names: importing the package would bind its BLAS for every contender.
SEEDS = (42, 123, 456, 789, 1024)
PRODUCTS, PRODUCT_ROWS = 20, 2048


def ours(job):
    """The project's engine: letters and five samples of every item."""
    from cba_utils import load_items, load_model
    from cba_utils.answering.scoring import stream

    loaded = load_model(job["model"], job["precision"])
    bank = load_items("bundled", condition="both")
    items = bank.iloc[[n % len(bank) for n in range(job["items"])]].reset_index(drop=True)
    # Items beyond the bank's own are told apart by a day, so that none is a copy.
    day = items.index // len(bank)
    items["context"] = [
        f"Day {d + 1}. {c}" if d else c for d, c in zip(day, items["context"], strict=True)
    ]
    draws = dict(seeds=SEEDS, temperature=0.3, max_tokens=5, parser="strict")

    def work():
        for _ in stream(loaded, items, job["orders"], 0.3, draws if job["samples"] else None):
            pass

    return work


def _loop(model, tokenizer, prompts):
    """The published loop, from its description: seed, generate, parse, one answer at a time."""
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.sample_utils import make_sampler

    sampler = make_sampler(temp=0.3)

    def work():
        for prompt in prompts:
            for seed in SEEDS:
                mx.random.seed(seed)
                text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=5, sampler=sampler)
                next((c for c in text.upper() if c in "ABC"), None)

    return work


def loop(job):
    """The loop as a user runs it today: MLX's own kernels and the wheel's own BLAS."""
    import mlx_lm

    return _loop(*mlx_lm.load(job["folder"]), job["prompts"])


def loop_blas(job):
    """The loop with the fast BLAS given to it."""
    from cba_utils.answering.blas import use_fast_blas

    use_fast_blas()
    return loop(job)


def loop_dense(job):
    """The loop with the fast BLAS and dequantized fp32 weights given to it."""
    from cba_utils import load_model

    loaded = load_model(job["model"], job["precision"], compute="dense")
    return _loop(loaded.model, loaded.tokenizer, job["prompts"])


def _tokenized(tokenizer, texts):
    """As transformers' users do it: one conversation a question, all in one call."""
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": t}] for t in texts]
    return tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]


def one_by_one(job):
    """Letter log-probabilities, one prompt at a time after a cached common beginning."""
    import copy

    from cba_utils import load_model

    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    loaded = load_model(job["model"], job["precision"], compute="dense")
    prompts = job["prompts"]
    common = 0
    while len({tuple(p[: common + 1]) for p in prompts}) == 1:
        common += 1
    letters = [mx.array(ids) for ids in loaded.letters]
    start = make_prompt_cache(loaded.model)
    mx.eval(loaded.model(mx.array([prompts[0][:common]]), cache=start))

    def work():
        for prompt in _tokenized(loaded.hf_tokenizer, job["texts"]):
            cache = copy.deepcopy(start)
            logits = loaded.model(mx.array([prompt[common:]]), cache=cache)[0, -1]
            logp = logits - mx.logsumexp(logits)
            mx.eval([mx.logsumexp(logp[ids]) for ids in letters])

    return work


def torch_batched(job):
    """Transformers on PyTorch: fp32, sorted by length, right-padded batches, last position read."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    letters = [torch.tensor(ids) for ids in job["letters"]]

    @torch.inference_mode()
    def work():
        prompts = sorted(_tokenized(tokenizer, job["texts"]), key=len)
        for first in range(0, len(prompts), job["batch"]):
            batch = prompts[first : first + job["batch"]]
            lengths = torch.tensor([len(p) for p in batch])
            ids = np.zeros((len(batch), int(lengths.max())), np.int64)
            for row, prompt in enumerate(batch):
                ids[row, : len(prompt)] = prompt
            # Causal attention never looks right, so padding there needs no mask.
            hidden = model.model(torch.from_numpy(ids), use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[torch.arange(len(batch)), lengths - 1])
            logp = torch.log_softmax(logits, -1)
            for which in letters:
                torch.logsumexp(logp[:, which], -1)

    return work


def product(job):
    """Matrix products of the shape of the model's widest layer: what this machine can do at most."""
    import cba_utils  # noqa: F401  (binds the fast BLAS first)

    import mlx.core as mx

    width, inner = job["widths"]
    a, b = mx.random.normal((PRODUCT_ROWS, width)), mx.random.normal((inner, width))
    mx.eval(a, b)

    def work():
        for _ in range(PRODUCTS):
            mx.eval(a @ b.T)

    return work


CONTENDERS = {
    f.__name__: f for f in (ours, loop, loop_blas, loop_dense, one_by_one, torch_batched, product)
}


def main():
    """Serve one contender on standard input and output."""
    name, path = sys.argv[1:]
    work = CONTENDERS[name](json.loads(Path(path).read_text()))
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        print(seconds, _peak_megabytes(), flush=True)


def _peak_megabytes():
    # On Linux ru_maxrss begins with what the parent process had; the high-water mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
