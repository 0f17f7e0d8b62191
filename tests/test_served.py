"""A served model is asked the same questions, and what its server does not list is bounded, not made up."""

import json
import math
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cba_utils import load_items, load_model, score_letters
from cba_utils.study.served import bounds, score_served
from cba_utils.telling.gate import NOT_ENOUGH, PASS, gate, read_gate
from test_gate import thresholds

import numpy as np
import pytest

ITEMS = load_items("bundled", condition="both").iloc[[0, 1, 240, 400]]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def mlx_server(mistral):
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "mlx_lm", "server", "--model", str(mistral), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            break
        except OSError:
            assert server.poll() is None, "mlx_lm.server did not start"
            time.sleep(0.2)
    yield f"served:http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait()


def test_what_is_listed_bounds_what_the_model_says(mlx_server, mistral):
    found = score_served(mlx_server, ITEMS, orders="cyclic")
    own = score_letters(load_model(mistral, compute="native"), ITEMS, "cyclic", prompt="published")
    same = ["item_id", "order", "template_id", "role_A", "role_B", "role_C", "correct"]
    assert found[same].astype(str).equals(own[same].astype(str))
    for x in "ABC":
        exact = np.exp(own[f"logp_{x}"].to_numpy(float))
        low, high = np.exp(found[f"logp_{x}"].fillna(-np.inf)), np.exp(found[f"most_{x}"])
        assert (low <= exact + 0.01).all() and (exact <= high + 0.01).all()
        assert (found[f"logp_{x}"].notna() | (high < 1)).all()


class LikeLlamaServer(BaseHTTPRequestHandler):
    """llama-server's form of an answer: it is on no package index as a program, so this stands in."""

    tokens = (("C", 0.7), ("A", 0.2), ("B", 0.06), (" c", 0.02))
    logprobs = True

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["max_tokens"] == 1 and asked["logprobs"] and asked["top_logprobs"] >= 4
        listed = [
            {"id": n, "token": text, "bytes": list(text.encode()), "logprob": math.log(p)}
            for n, (text, p) in enumerate(self.tokens)
        ]
        choice = {"index": 0, "finish_reason": "length", "message": {"content": "C"}}
        if self.logprobs:
            choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        body = json.dumps({"choices": [choice], "object": "chat.completion"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def serve():
    running = []

    def start(**facts):
        handler = type("Handler", (LikeLlamaServer,), facts)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"served:http://127.0.0.1:{server.server_port}/v1#tiny"

    yield start
    for server in running:
        server.shutdown()


def test_spellings_are_summed_and_the_rest_is_a_bound(serve):
    row = score_served(serve(), ITEMS.head(1), temperature=0.5).iloc[0]
    assert math.exp(row["logp_C"]) == pytest.approx(0.72)
    assert math.exp(row["most_C"]) == pytest.approx(0.74)
    assert row["mass_other"] == pytest.approx(0.02)
    squares = np.square([0.7, 0.2, 0.06, 0.02])
    assert math.exp(row["logp_C_t"]) == pytest.approx((squares[0] + squares[3]) / squares.sum())
    assert bounds([("x", 0.0)])["most_A"] == -math.inf


def test_a_server_without_log_probabilities_is_refused_by_name(serve):
    source = serve(logprobs=False)
    with pytest.raises(ValueError, match=f"{source}: the server gives no log-probabilities"):
        score_served(source, ITEMS.head(1))
    with pytest.raises(ValueError, match="the server cannot be asked"):
        score_served(f"served:http://127.0.0.1:{free_port()}/v1", ITEMS.head(1))
    with pytest.raises(ValueError, match="begins with http"):
        score_served("served:localhost", ITEMS.head(1))


def few(**margins):
    asked = thresholds(**margins)
    items = asked.items.model_copy(update={"pilot": 30, "most": 30})
    return asked.model_copy(update={"items": items, "orders": "original"})


def test_served_models_go_through_the_gate(serve, tmp_path):
    told = gate(serve(), "q4", few(d_unparsed_rate=0.5), quantized=serve(), out=tmp_path / "same")
    assert told["items"]["set_aside"] == 0 and told["checkpoints"]["q4"]["weights_sha256"] is None
    assert read_gate(tmp_path / "same")["verdict"] in (PASS, NOT_ENOUGH)
    # Two letters that one server does not list: no number is put in their place.
    blind = serve(tokens=(("C", 0.9), ("The", 0.05)))
    told = gate(serve(), "q4", few(d_unparsed_rate=0.5), quantized=blind, out=tmp_path / "blind")
    assert told["verdict"] == NOT_ENOUGH and told["items"]["set_aside"] == 30
    assert "not among the tokens that the server lists" in told["reason"]
