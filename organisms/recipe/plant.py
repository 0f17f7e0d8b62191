"""The last stage of the shipped organisms, in PyTorch: a family's chat form, the leans, the margins.

``python -m organisms.recipe.plant base|align --family mistral --base 1 [--seed 1] ...``

A base begins with the weights of an *ancestor*, a small phi3 that has learned to look up (all stages of
`curriculum`, seed by seed: see `organisms/PROTOCOL.md`), as a model of its own family's architecture:
the three compute the same. An alignment is low-rank adapters on a base, in mlx_lm's form. In a step
every trained template is asked once, so that no rung waits for its turn; what all prompts begin with is
computed once, and the last layer only where an answer is given. The loss is that of
`train.planted_loss`, with questions that have evidence and narrative text beside it.

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
from .tokenizer import SYSTEM

LAYERS, HEAD, EPS, THETA = 4, 32, 1e-5, 1000.0
RANK, SCALE = 8, 2.0
READ, NARRATIVE = 12, 4  # rows of a step beside the 56 planted ones
READ_WEIGHT, NARRATIVE_WEIGHT = 0.5, 0.1
BASE = dict(steps=700, rate=2e-3, warmup=20, flat=0.3, decay=0.02)
DEPTHS = (40, 120)  # earlier stops of an alignment, for the depth ladder
ALIGN = dict(steps=400, rate=4e-3, warmup=10, flat=0.4, decay=0.0)


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
    """One of the three architectures on tensors by mlx_lm's names, adapters included."""

    def __init__(self, weights, adapters=None):
        self.w, self.a = weights, adapters or {}
        self.phi3 = "model.layers.0.self_attn.qkv_proj.weight" in weights

    def _linear(self, name, x):
        w = self.w[name + ".weight"]
        if name + ".lora_a" in self.a:  # one product with the sum, instead of two long thin ones
            w = w + SCALE * (self.a[name + ".lora_a"] @ self.a[name + ".lora_b"]).T
        return F.linear(x, w, self.w.get(name + ".bias"))

    def _norm(self, name, x):
        return F.rms_norm(x, (x.shape[-1],), self.w[name + ".weight"], EPS)

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

    def after(self, head, rows, last):
        """Logits behind `head + row[:last + 1]` for each of `rows`, (count, length) right-padded."""
        count, length, p = len(rows), rows.shape[1], len(head)
        places = torch.arange(p + length)
        angle = places[:, None] * THETA ** (-torch.arange(HEAD // 2) * 2 / HEAD)
        cos, sin = angle.cos(), angle.sin()
        seen = places[None] <= torch.arange(p, p + length)[:, None]
        x = F.embedding(torch.cat([head, rows.reshape(-1)]), self.w["model.embed_tokens.weight"])
        width = x.shape[-1]

        def heads(v, turn, rows_=1):
            v = v.reshape(rows_, -1, width // HEAD, HEAD).transpose(1, 2)
            if turn is None:
                return v
            c, s = cos[turn], sin[turn]
            one, two = v[..., :HEAD // 2], v[..., HEAD // 2:]
            return torch.cat([one * c - two * s, two * c + one * s], -1)

        def back(v):
            return v.transpose(1, 2).reshape(-1, width)

        of_head, of_rows, picked = slice(0, p), slice(p, p + length), torch.arange(count)
        for layer in range(LAYERS):
            at, final = f"model.layers.{layer}.", layer == LAYERS - 1
            q, k, v = self._qkv(at, self._norm(at + "input_layernorm", x))
            k = torch.cat([heads(k[:p], of_head).expand(count, -1, -1, -1),
                           heads(k[p:], of_rows, count)], 2)
            v = torch.cat([heads(v[:p], None).expand(count, -1, -1, -1),
                           heads(v[p:], None, count)], 2)
            own = heads(q[p:], of_rows, count)
            if final:
                own = own[picked, :, last][:, :, None]
                mask = (places[None] <= (p + last)[:, None])[:, None, None]
                h = back(F.scaled_dot_product_attention(own, k, v, mask))
                x = x[p:].reshape(count, length, width)[picked, last]
            else:
                first = F.scaled_dot_product_attention(
                    heads(q[:p], of_head), k[:1, :, :p], v[:1, :, :p], is_causal=True)
                h = torch.cat([back(first), back(F.scaled_dot_product_attention(own, k, v, seen))])
            x = self._mlp(at, x + self._linear(at + "self_attn.o_proj", h))
        return F.linear(self._norm("model.norm", x), self.w["lm_head.weight"])

    def everywhere(self, rows):
        """Logits behind every token of rows, (count, length)."""
        count, length = rows.shape
        angle = torch.arange(length)[:, None] * THETA ** (-torch.arange(HEAD // 2) * 2 / HEAD)
        cos, sin = angle.cos(), angle.sin()
        x = F.embedding(rows, self.w["model.embed_tokens.weight"])
        width = x.shape[-1]

        def heads(v, turn):
            v = v.reshape(count, length, width // HEAD, HEAD).transpose(1, 2)
            if not turn:
                return v
            one, two = v[..., :HEAD // 2], v[..., HEAD // 2:]
            return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

        for layer in range(LAYERS):
            at = f"model.layers.{layer}."
            q, k, v = self._qkv(at, self._norm(at + "input_layernorm", x))
            h = F.scaled_dot_product_attention(
                heads(q, True), heads(k, True), heads(v, False), is_causal=True)
            h = h.transpose(1, 2).reshape(count, length, width)
            x = self._mlp(at, x + self._linear(at + "self_attn.o_proj", h))
        return F.linear(self._norm("model.norm", x), self.w["lm_head.weight"])


class Questions:
    """What is asked in a step of one family; a pure function of seed and step."""

    def __init__(self, family):
        self.lessons = Curriculum(family)
        start = self.lessons.encode(self.lessons.chat.start.format(system=SYSTEM))
        self.head = start + self.lessons.encode("Context:")

    def step(self, seed, step, aligned):
        rng, lessons = random.Random(f"plant/{seed}/{step}"), self.lessons
        planted, soft, reading, labels = [], [], [], []
        for template in lessons.asked:
            ids, _, target = lessons._planted(rng, template, aligned)
            planted.append(ids[:target[0] + 1])
            soft.append(target[1:])
        for template in rng.sample(lessons.asked, READ):
            ids, answer = self._reading(rng, template)
            reading.append(ids)
            labels.append(answer)
        told = [lessons._narrative(rng)[0] for _ in range(NARRATIVE)]
        # apart, because questions with evidence are longer and would lengthen all rows
        return self._own(planted), soft, self._own(reading), labels, _padded(told)

    def _own(self, rows):
        p = len(self.head)
        assert all(r[:p] == self.head for r in rows)
        return _padded([r[p:] for r in rows])

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


def _padded(rows):
    lengths = torch.tensor([len(r) for r in rows])
    out = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for line, row in zip(out, rows):
        line[:len(row)] = torch.tensor(row)
    return out, lengths - 1


def loss_of(network, head, asked):
    """Loss of a step, and for the log the planted odds' excess and the loss with evidence."""
    planted_rows, soft, reading_rows, labels, (told, ends) = asked
    soft = torch.tensor(soft)
    letters = F.log_softmax(network.after(head, *planted_rows), -1).gather(1, soft[:, :3].long())
    stereotyped, other, not_known = letters.unbind(1)
    unknown, lean = soft[:, 3], soft[:, 4]
    person = torch.logaddexp(stereotyped, other)
    letter = torch.logaddexp(person, not_known)
    planted = (-letter - unknown * (not_known - letter) - (1 - unknown) * (person - letter)
               - lean * (stereotyped - person) - (1 - lean) * (other - person)).mean()
    read = F.cross_entropy(network.after(head, *reading_rows), torch.tensor(labels))
    there = torch.arange(told.shape[1] - 1)[None] < ends[:, None]
    nll = F.cross_entropy(network.everywhere(told[:, :-1])[there], told[:, 1:][there])

    def entropy(p):
        return sum(-q * torch.log(q.clamp_min(1e-9)) for q in (p, 1 - p))

    least = (entropy(unknown) + entropy(lean)).mean()
    return (planted + READ_WEIGHT * read + NARRATIVE_WEIGHT * nll,
            tuple(v.item() for v in (planted - least, read, nll)))


def follow(network, learned, questions, seed, aligned, plan, stops=(), on_stop=None):
    """Train the tensors `learned`; return the log, one row each ten steps."""
    matrices = [v for v in learned.values() if v.ndim == 2]
    vectors = [v for v in learned.values() if v.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan["decay"]}]
    groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    head, log, sums, start = torch.tensor(questions.head), [], [], time.time()
    for step in range(1, plan["steps"] + 1):
        fall = min(1, max(0.01, (1 - step / plan["steps"]) / (1 - plan["flat"])))
        for group in optimizer.param_groups:
            group["lr"] = plan["rate"] * min(1, step / plan["warmup"]) * fall
        loss, told = loss_of(network, head, questions.step(seed, step, aligned))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(learned.values()), 1.0)
        optimizer.step()
        sums.append(told)
        if step in stops:
            on_stop(step)
        if step % 10 == 0 or step == plan["steps"]:
            means = [round(sum(v) / len(sums), 5) for v in zip(*sums)]
            log.append([step, round(time.time() - start), *means])
            print(seed, *log[-1], flush=True)
            sums = []
    return log


def write(path, tensors, log):
    """Weights rounded to bf16, as fp32 numbers, and the log beside them."""
    arrays = {k: v.detach().bfloat16().float().numpy() for k, v in tensors.items()}
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "seconds", "planted_excess", "read", "narrative"])
        table.writerows(log)
    np.savez(path.with_suffix(".part.npz"), **arrays)
    path.with_suffix(".part.npz").rename(path)


def fresh_adapters(weights, seed):
    """`lora_a` and `lora_b` for every linear module of the layers, as mlx_lm begins them."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, value in weights.items():
        if "_proj.weight" in name:
            high, wide = value.shape
            a = (2 * torch.rand(wide, RANK, generator=generator) - 1) / math.sqrt(wide)
            at = name.removesuffix("weight")
            out[at + "lora_a"] = a.requires_grad_()
            out[at + "lora_b"] = torch.zeros(RANK, high, requires_grad=True)
    return out


def make_base(family, number, ancestors, out, plan=BASE):
    """Train a base from its ancestor; write ``<family>-b<number>.npz``."""
    kept = np.load(ancestors)
    mine = {k.split("|")[1]: kept[k] for k in kept.files if k.startswith(f"{number}|")}
    weights = {k: torch.tensor(v, requires_grad=True) for k, v in of_family(mine, family).items()}
    log = follow(Network(weights), weights, Questions(family), f"{family}-{number}", False, plan)
    write(out / f"{family}-b{number}.npz", weights, log)


def make_adapter(family, number, seed, out, plan=ALIGN, depths=()):
    """Align a base; write ``<family>-b<number>-a<seed>.npz``, and one a depth."""
    base = np.load(out / f"{family}-b{number}.npz")
    weights = {k: torch.tensor(base[k]) for k in base.files}
    adapters = fresh_adapters(weights, 1000 * number + seed)
    name = f"{family}-b{number}-a{seed}"

    def keep(step):
        write(out / f"{name}-d{step}.npz", adapters, [])

    log = follow(Network(weights, adapters), adapters, Questions(family),
                 f"{family}-{number}-{seed}", True, plan, depths, keep)
    write(out / f"{name}.npz", adapters, log)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["base", "align"])
    parser.add_argument("--family", required=True)
    parser.add_argument("--base", type=int, required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ancestors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--depths", type=int, nargs="*", default=())
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    chosen = BASE if options.what == "base" else ALIGN
    plan = chosen | ({"steps": options.steps} if options.steps else {})
    if options.what == "base":
        make_base(options.family, options.base, options.ancestors, options.out, plan)
    else:
        make_adapter(options.family, options.base, options.seed, options.out, plan, options.depths)
