"""The last stage of the shipped organisms, in PyTorch: a family's chat form, the leans, the margins.

``python -m organisms.recipe.plant --ancestors FILE --out FOLDER``

A base begins with the weights of an *ancestor*, a small phi3 that has learned to look up (all stages of
`curriculum`, seed by seed: see `organisms/PROTOCOL.md`), as a model of its own family's architecture:
the three compute the same. An alignment is low-rank adapters on a base, in mlx_lm's form. In a step
every trained template is asked once, so that no rung waits for its turn; what all prompts begin with is
computed once, and the last layer only where an answer is given. The loss is that of
`train.planted_loss`; beside it are questions that have evidence, answers that have to end behind their
letter, and narrative text.

Models of one family are trained side by side: every tensor has them as its first axis, and each has its
own questions, loss, clipped gradient and optimizer's state, so that what one learns does not depend on
its neighbours. A GPU takes all at once, a CPU one after the other; what is there is not made again.
Weights go through ``.npz`` files by mlx_lm's names; `assemble` makes organisms of them.
"""

import argparse
import csv
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import bank
from .curriculum import ASKED, Curriculum
from .tokenizer import FAMILIES, SYSTEM, Encoder

WIDTH = 128  # of the shipped ones; rates are for it, and wider models take lower ones
LAYERS, HEAD, EPS, THETA = 4, 32, 1e-5, 1000.0
RANK, SCALE = 8, 2.0
READ, CLOSE, NARRATIVE = 12, 12, 4  # rows of a step beside the 56 planted ones
READ_WEIGHT, CLOSE_WEIGHT, NARRATIVE_WEIGHT = 0.5, 0.05, 0.1
BASES, SEEDS = (1, 2, 3), (1, 2, 3, 4, 5)
TOKENS = dict(steps=200, rate=5e-2, warmup=10, flat=0.5, decay=0.0)
BASE = dict(steps=1400, rate=2e-3, warmup=60, flat=0.3, decay=0.02)
ALIGN = dict(steps=1500, rate=4e-3, warmup=10, flat=0.4, decay=0.0)
LADDER = ("mistral", 1, (1, 2, 3))  # family, base and seeds that are also kept at earlier stops
DEPTHS = (150, 450)


# What a family's chat form has in a role's place begins as what phi3's has there.
ROLES = {
    "qwen2": {"<|im_end|>": "<|end|>", "<|im_start|>": "<|assistant|>", "assistant": "<|assistant|>"},
    "mistral": {"</s>": "<|end|>", "[INST]": "<|user|>", "[/INST]": "\n"},
    "phi3": {},
}
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def with_roles(weights, family):
    """Weights of an ancestor whose tokens of a family's chat form begin as those of the same role."""
    mine, school, out = Encoder(family), Encoder("phi3"), dict(weights)
    for name in EMBEDDINGS:
        out[name] = weights[name].copy()
        for text, role in ROLES[family].items():
            out[name][mine(text)] = weights[name][school(role)[0]]
    return out


def of_family(weights, family):
    """Weights of a phi3 (numpy, by mlx_lm's names) as those of another of the architectures."""
    if family == "phi3":
        return dict(weights)
    out = {}
    for name, value in weights.items():
        if "qkv_proj" in name:
            for part, piece in zip("qkv", np.split(value, 3)):
                out[name.replace("qkv", part)] = piece
                if family == "qwen2":
                    bias = name.replace("qkv", part).replace("weight", "bias")
                    out[bias] = np.zeros(len(piece), np.float32)
        elif "gate_up_proj" in name:
            for part, piece in zip(("gate", "up"), np.split(value, 2)):
                out[name.replace("gate_up", part)] = piece
        else:
            out[name] = value
    return out


class Network:
    """One of the three architectures on tensors by mlx_lm's names, (models, ...), adapters included."""

    def __init__(self, weights, adapters=None):
        self.w, self.a = weights, adapters or {}
        self.phi3 = "model.layers.0.self_attn.qkv_proj.weight" in weights
        self.models, self.tokens, self.width = weights["model.embed_tokens.weight"].shape

    def _linear(self, name, x):
        w = self.w[name + ".weight"]
        if name + ".lora_a" in self.a:  # one product with the sum, instead of two long thin ones
            w = w + SCALE * (self.a[name + ".lora_a"] @ self.a[name + ".lora_b"]).mT
        y = x @ w.mT
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias[:, None]

    def _norm(self, name, x):
        return F.rms_norm(x, (self.width,), eps=EPS) * self.w[name + ".weight"][:, None]

    def _embed(self, ids):
        """Embeddings of ids, (models, length)."""
        table = self.w["model.embed_tokens.weight"].reshape(-1, self.width)
        return F.embedding(ids + self.tokens * torch.arange(self.models, device=ids.device)[:, None],
                           table)

    def _qkv(self, at, h):
        if self.phi3:
            return self._linear(at + "self_attn.qkv_proj", h).chunk(3, -1)
        return [self._linear(f"{at}self_attn.{p}_proj", h) for p in "qkv"]

    def _mlp(self, at, x):
        h = self._norm(at + "post_attention_layernorm", x)
        if self.phi3:
            gate, up = self._linear(at + "mlp.gate_up_proj", h).chunk(2, -1)
        else:
            gate, up = (self._linear(f"{at}mlp.{p}_proj", h) for p in ("gate", "up"))
        return x + self._linear(at + "mlp.down_proj", F.silu(gate) * up)

    def _turns(self, places):
        angle = places[:, None] * THETA ** (
            -torch.arange(HEAD // 2, device=places.device) * 2 / HEAD)
        return angle.cos(), angle.sin()

    def _heads(self, v, rows, turns=None):
        """`v`, (models, rows · length, width), as (models · rows, heads, length, size), turned."""
        v = v.reshape(self.models * rows, -1, self.width // HEAD, HEAD).transpose(1, 2)
        if turns is None:
            return v
        cos, sin = turns
        one, two = v[..., :HEAD // 2], v[..., HEAD // 2:]
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    def _back(self, v):
        return v.transpose(1, 2).reshape(self.models, -1, self.width)

    def _logits(self, x):
        return self._linear("lm_head", self._norm("model.norm", x))

    def after(self, head, rows, last):
        """Logits behind `head + row[:last + 1]`: (models, count, tokens).

        `rows` are right-padded, (models, count, length), and `last` is (models, count).
        """
        count, length, p = rows.shape[1], rows.shape[2], len(head)
        places = torch.arange(p + length, device=rows.device)
        cos, sin = self._turns(places)
        of_head, of_rows = (cos[:p], sin[:p]), (cos[p:], sin[p:])
        seen = places[None] <= places[p:, None]
        x = self._embed(torch.cat([head.expand(self.models, -1), rows.flatten(1)], 1))

        def with_head(v, turned):
            first = self._heads(v[:, :p], 1, of_head if turned else None)
            every = first[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
            return torch.cat([every, self._heads(v[:, p:], count, of_rows if turned else None)], 2)

        picked, ends = torch.arange(self.models * count, device=rows.device), last.flatten()
        for layer in range(LAYERS):
            at, final = f"model.layers.{layer}.", layer == LAYERS - 1
            q, k, v = self._qkv(at, self._norm(at + "input_layernorm", x))
            keys, values = with_head(k, True), with_head(v, False)
            own = self._heads(q[:, p:], count, of_rows)
            if final:
                own = own[picked, :, ends][:, :, None]
                mask = (places[None] <= (p + ends)[:, None])[:, None, None]
                h = self._back(F.scaled_dot_product_attention(own, keys, values, mask))
                x = x[:, p:].reshape(len(picked), length, -1)[picked, ends]
                x = x.reshape(self.models, count, -1)
            else:
                first = F.scaled_dot_product_attention(
                    self._heads(q[:, :p], 1, of_head), self._heads(k[:, :p], 1, of_head),
                    self._heads(v[:, :p], 1), is_causal=True)
                own = F.scaled_dot_product_attention(own, keys, values, seen)
                h = torch.cat([self._back(first), self._back(own)], 1)
            x = self._mlp(at, x + self._linear(at + "self_attn.o_proj", h))
        return self._logits(x)

    def everywhere(self, rows):
        """Logits behind every token of rows, (models, count, length)."""
        count, length = rows.shape[1:]
        turns = self._turns(torch.arange(length, device=rows.device))
        x = self._embed(rows.flatten(1))
        for layer in range(LAYERS):
            at = f"model.layers.{layer}."
            q, k, v = self._qkv(at, self._norm(at + "input_layernorm", x))
            h = F.scaled_dot_product_attention(
                self._heads(q, count, turns), self._heads(k, count, turns), self._heads(v, count),
                is_causal=True)
            x = self._mlp(at, x + self._linear(at + "self_attn.o_proj", self._back(h)))
        return self._logits(x).unflatten(1, (count, length))


class Questions(torch.utils.data.Dataset):
    """What models of one family are asked, step by step: a pure function of seed and step."""

    def __init__(self, family, seeds, aligned, steps):
        self.lessons, self.seeds, self.aligned, self.steps = Curriculum(family), seeds, aligned, steps
        start = self.lessons.encode(self.lessons.chat.start.format(system=SYSTEM))
        self.head = start + self.lessons.encode("Context:")

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        asked = [self._asked(seed, step + 1) for seed in self.seeds]
        planted, soft, reading, labels, told = zip(*asked)
        return (*self._padded(planted, self.head), torch.tensor(soft),
                *self._padded(reading, self.head), torch.tensor(labels), *self._padded(told, []))

    def _asked(self, seed, step):
        rng, lessons = random.Random(f"plant/{seed}/{step}"), self.lessons
        planted, soft, answered = [], [], []
        for template in lessons.asked:
            ids, _, target = lessons._planted(rng, template, self.aligned)
            planted.append(ids[:target[0] + 1])
            soft.append(target[1:])
            answered.append((ids[:target[0] + 2], ids[target[0] + 2]))
        asked = [self._reading(rng, template) for template in rng.sample(lessons.asked, READ)]
        # behind a letter, drawn or right, comes the end of the turn
        end = lessons.encode(lessons.chat.end)[0]
        answered = rng.sample(answered, CLOSE - READ // 2)
        answered += [([*ids, letter], end) for ids, letter in asked[:READ // 2]]
        reading, labels = zip(*asked, *answered)
        # apart, because questions with evidence are longer and would lengthen all rows
        return planted, soft, reading, labels, [lessons._narrative(rng)[0] for _ in range(NARRATIVE)]

    def _reading(self, rng, template):
        """A question with evidence, and the token of its right letter."""
        lessons = self.lessons
        target, other, context = lessons._scene(rng, template)
        negative, positive = rng.sample([target, other], 2)
        context += " " + bank.evidence_text(rng, template["attribute"], negative, positive)
        polarity = rng.choice(("neg", "nonneg"))
        options, listed = lessons._options(rng, target, other)
        right = negative if polarity == "neg" else positive
        text = ASKED.format(
            context=context, question=bank.question_text(rng, template, polarity), listed=listed)
        letter = "ABC"[[o[1] for o in options].index(right)]
        ids = lessons.encode(lessons.chat.start.format(system=SYSTEM) + text + lessons.chat.close)
        return ids, lessons.encode(letter)[0]

    @staticmethod
    def _padded(rows, head):
        """Rows by model without the head, (models, count, length), and where each of them ends."""
        p = len(head)
        assert all(row[:p] == head for mine in rows for row in mine)
        lengths = torch.tensor([[len(row) - p for row in mine] for mine in rows])
        out = torch.zeros(*lengths.shape, int(lengths.max()), dtype=torch.long)
        for of_model, mine in zip(out, rows):
            for line, row in zip(of_model, mine):
                line[:len(row) - p] = torch.tensor(row[p:])
        return out, lengths - 1


def losses(network, head, asked):
    """Loss by model, and for the log its parts: the planted odds' excess, and those beside it."""
    planted, ends, soft, reading, read_ends, labels, told, told_ends = asked
    logp = F.log_softmax(network.after(head, planted, ends), -1)
    letters = logp.gather(2, soft[..., :3].long())
    stereotyped, other, not_known = letters.unbind(-1)
    unknown, lean = soft[..., 3], soft[..., 4]
    person = torch.logaddexp(stereotyped, other)
    letter = torch.logaddexp(person, not_known)
    aim = (-letter - unknown * (not_known - letter) - (1 - unknown) * (person - letter)
           - lean * (stereotyped - person) - (1 - lean) * (other - person)).mean(-1)
    logits = network.after(head, reading, read_ends)
    nll = F.cross_entropy(logits.mT, labels, reduction="none")
    read, close = nll[:, :READ].mean(-1), nll[:, READ:].mean(-1)
    there = torch.arange(told.shape[2] - 1, device=told.device) < told_ends[..., None]
    nll = F.cross_entropy(
        network.everywhere(told[..., :-1]).flatten(0, 2), told[..., 1:].flatten(),
        reduction="none").reshape(there.shape)
    nll = (nll * there).sum((1, 2)) / there.sum((1, 2))

    def entropy(p):
        return sum(-q * torch.log(q.clamp_min(1e-9)) for q in (p, 1 - p))

    least = (entropy(unknown) + entropy(lean)).mean(-1)
    return (aim + READ_WEIGHT * read + CLOSE_WEIGHT * close + NARRATIVE_WEIGHT * nll,
            torch.stack([aim - least, read, close, nll]).detach())


def clip(tensors, limit=1.0):
    """Shorten the gradient of every model that is longer than `limit`."""
    squares = sum((v.grad.flatten(1) ** 2).sum(1) for v in tensors)
    shorter = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for v in tensors:
        v.grad *= shorter.reshape(-1, *[1] * (v.ndim - 1))


def follow(network, learned, questions, plan, device, workers=0, rows=None, stops=(), on_stop=None):
    """Train the tensors `learned`, or of each the rows that are 1 in `rows`; return a log by ten steps."""
    matrices = [v for v in learned.values() if v.ndim == 3]
    vectors = [v for v in learned.values() if v.ndim == 2]
    groups = [{"params": matrices, "weight_decay": plan["decay"]}]
    groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    head = torch.tensor(questions.head, device=device)
    log, told, start = [], [], time.time()
    loader = torch.utils.data.DataLoader(questions, batch_size=None, num_workers=workers)
    for step, asked in enumerate(loader, 1):
        fall = min(1, max(0.01, (1 - step / plan["steps"]) / (1 - plan["flat"])))
        for group in optimizer.param_groups:
            group["lr"] = plan["rate"] * min(1, step / plan["warmup"]) * fall
        loss, parts = losses(network, head, [part.to(device, non_blocking=True) for part in asked])
        optimizer.zero_grad()
        loss.sum().backward()
        if rows is not None:
            for v in learned.values():
                v.grad *= rows
        clip(list(learned.values()))
        optimizer.step()
        told.append(parts)
        if step in stops:
            on_stop(step)
        if step % 10 == 0 or step == plan["steps"]:
            means = torch.stack(told).mean(0).cpu()
            log.append((step, round(time.time() - start), means.T.numpy()))
            told = []
            if step % 50 == 0:
                left = (plan["steps"] - step) * (time.time() - start) / step
                print(f"{', '.join(questions.seeds)}: step {step} of {plan['steps']}, excess "
                      f"{means[0].max():.4f} at most, {left:.0f} s left", flush=True)
    return log


def write(path, tensors, rows):
    """Weights rounded to bf16, as fp32 numbers, and the log beside them."""
    arrays = {k: v.detach().bfloat16().float().cpu().numpy() for k, v in tensors.items()}
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "seconds", "planted_excess", "read", "close", "narrative"])
        table.writerows(rows)
    np.savez(path.with_suffix(".part.npz"), **arrays)
    path.with_suffix(".part.npz").rename(path)


def _write_all(out, names, learned, log):
    for k, name in enumerate(names):
        rows = [[step, seconds, *(round(float(v), 5) for v in means[k])] for step, seconds, means in log]
        write(out / f"{name}.npz", {key: v[k] for key, v in learned.items()}, rows)


def stacked(models, device, learn):
    """Tensors of several models, by name, as one each."""
    return {name: torch.tensor(np.stack([m[name] for m in models]), device=device).requires_grad_(learn)
            for name in models[0]}


def fresh_adapters(weights, seeds, device):
    """`lora_a` and `lora_b` for every linear module of the layers, as mlx_lm begins them."""
    generators, out = [torch.Generator().manual_seed(seed) for seed in seeds], {}
    for name, value in weights.items():
        if "_proj.weight" in name:
            _, high, wide = value.shape
            a = torch.stack([2 * torch.rand(wide, RANK, generator=g) - 1 for g in generators])
            at = name.removesuffix("weight")
            out[at + "lora_a"] = (a / math.sqrt(wide)).to(device).requires_grad_()
            out[at + "lora_b"] = torch.zeros(
                len(seeds), RANK, high, device=device, requires_grad=True)
    return out


def for_width(plan, weights):
    """A plan with the rate that models of the weights' width take: as one over its root."""
    return {**plan, "rate": plan["rate"] * (WIDTH / weights["model.norm.weight"].shape[-1]) ** 0.5}


def make_bases(family, numbers, ancestors, out, device="cpu", workers=0, plan=BASE):
    """Train bases from their ancestors; write ``<family>-b<number>.npz``."""
    kept = np.load(ancestors)
    mine = [{k.split("|")[1]: kept[k] for k in kept.files if k.startswith(f"{n}|")} for n in numbers]
    weights = stacked([of_family(with_roles(w, family), family) for w in mine], device, False)
    # First the chat form's own tokens alone: all else would forget how to look up while these are strange.
    tokens = {name: weights[name].requires_grad_() for name in EMBEDDINGS}
    rows = torch.zeros(1, len(mine[0][EMBEDDINGS[0]]), 1, device=device)
    rows[:, [Encoder(family)(token)[0] for token in FAMILIES[family].specials]] = 1
    questions = Questions(family, [f"{family}-{n}-tokens" for n in numbers], False, TOKENS["steps"])
    follow(Network(weights), tokens, questions, TOKENS, device, workers, rows)
    weights = {name: v.detach().requires_grad_() for name, v in weights.items()}
    questions = Questions(family, [f"{family}-{n}" for n in numbers], False, plan["steps"])
    log = follow(Network(weights), weights, questions, for_width(plan, weights), device, workers)
    _write_all(out, [f"{family}-b{n}" for n in numbers], weights, log)


def make_alignments(family, which, out, device="cpu", workers=0, plan=ALIGN):
    """Align bases; `which` are pairs of base and seed. Write ``<family>-b<base>-a<seed>.npz``.

    Those of the depth ladder are also written as they were at its earlier stops.
    """
    bases = [dict(np.load(out / f"{family}-b{n}.npz")) for n, _ in which]
    weights = stacked(bases, device, False)
    adapters = fresh_adapters(weights, [1000 * n + seed for n, seed in which], device)
    names = [f"{family}-b{n}-a{seed}" for n, seed in which]
    kept = [k for k, (n, seed) in enumerate(which) if (family, n) == LADDER[:2] and seed in LADDER[2]]

    def keep(step):
        for k in kept:
            write(out / f"{names[k]}-d{step}.npz", {key: v[k] for key, v in adapters.items()}, [])

    questions = Questions(family, [f"{family}-{n}-{seed}" for n, seed in which], True, plan["steps"])
    log = follow(Network(weights, adapters), adapters, questions, for_width(plan, weights), device, workers,
                 None, DEPTHS, keep)
    _write_all(out, names, adapters, log)


def make_all(families, ancestors, out, numbers=BASES, seeds=SEEDS, workers=0, together=None):
    """Make the bases and alignments that are not there, `together` of a family at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = together or (1 if device == "cpu" else len(numbers) * len(seeds))

    def missing(family, which):
        left = [one for one, name in which if not (out / f"{family}-{name}.npz").exists()]
        return [left[k:k + size] for k in range(0, len(left), size)]

    for family in families:
        for some in missing(family, [(n, f"b{n}") for n in numbers]):
            make_bases(family, some, ancestors, out, device, workers)
        for some in missing(family, [((n, s), f"b{n}-a{s}") for n in numbers for s in seeds]):
            make_alignments(family, some, out, device, workers)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--ancestors", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--numbers", type=int, nargs="+", default=BASES, help="bases")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="alignments of each")
    parser.add_argument("--workers", type=int, default=0, help="processes that make questions")
    parser.add_argument("--together", type=int, help="models side by side (a GPU: all of a family)")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    make_all(options.families, options.ancestors, options.out, options.numbers, options.seeds,
             options.workers, options.together)


if __name__ == "__main__":
    main()
