"""Training sequences and the order in which skills are learned.

Two circuits are hard for a model this small, name to letter and word to the name it was said of.
*Dense* sequences teach the first (an option list, then a dozen ``name letter`` pairs), and the
look-up grows from them in three levels (the question behind the list, the question before the
list, the chat). A *ladder* teaches the second: facts, then queries whose answer moves, level by
level, from right behind the word to behind the assistant header. Every earlier task stays in the
mix.

A batch is a pure function of seed, step and `Stage`, so training resumes exactly and batches can
be made by any number of processes.
"""

import random
from dataclasses import dataclass

import numpy as np

from . import bank
from .tokenizer import SYSTEM, Encoder

LENGTH = 152
BATCH = 48
KINDS = ("dense", "narr", "look", "odis", "mdis", "oamb", "mamb", "facts")
# loss weights: answers of chats, answers of drills, prompts, narrative
CHAT, DRILL, PROMPT, TEXT = 6.0, 2.0, 0.1, 1.0
STAGES = (
    # shares of KINDS, and the mean losses that end the stage (None: the last)
    ((0.28, 0.04, 0.28, 0, 0, 0, 0, 0.40), {"dense": 0.12, "facts": 0.25}),
    ((0.05, 0.05, 0.15, 0.50, 0.05, 0, 0, 0.20), {"odis": 0.10, "look": 0.12}),
    ((0.03, 0.07, 0.10, 0.20, 0.50, 0, 0, 0.10), {"mdis": 0.15}),
    ((0.02, 0.14, 0.05, 0.07, 0.37, 0.07, 0.26, 0.02), None),
)
ALIGN = (0.01, 0.03, 0.02, 0.02, 0.30, 0, 0.60, 0.02)
ASKED = "Context: {context}\n\nQuestion: {question}\n\n{listed}\n\nAnswer:"
LEVEL_GATE = 0.25
LOOK_LEVELS = 2


@dataclass(frozen=True)
class Stage:
    """Where the curriculum stands: stage number, levels of facts and look-up, base or aligned."""

    number: int = 0
    level: int = 0
    look: int = 0
    aligned: bool = False

    @classmethod
    def last(cls, top_level, aligned=False):
        """The stage at which base training ends and alignment works."""
        return cls(len(STAGES) - 1, top_level, LOOK_LEVELS, aligned)


class Curriculum:
    """Makes batches for one family.

    Examples
    --------
    >>> x, w, soft, kinds = Curriculum("mistral").batch(seed=1, step=0, stage=Stage())
    >>> x.shape == (BATCH, LENGTH + 1) and w.shape == (BATCH, LENGTH) and soft.shape == (BATCH, 6)
    True
    """

    def __init__(self, family):
        self.encode = Encoder(family)
        self.chat = self.encode.chat
        self.close = self.encode(self.chat.close)
        self.top_level = 5 + len(self.close)
        # held-out templates never appear in a question
        self.asked = [t for t in bank.TEMPLATES if t["version"] != "heldout-template"]
        held = {(t["category"], t["attribute"]) for t in bank.TEMPLATES} - {
            (t["category"], t["attribute"]) for t in self.asked}
        self.drilled = {
            c: [a for a in bank.WORDS if (c, a) not in held] for c in bank.CATEGORIES}

    def batch(self, seed, step, stage):
        """Token ids, loss weights of the next tokens, soft targets, and the kind of every row.

        A soft target is `(place, letter of the stereotyped person, of the other, of unknown, planted
        probability of unknown, planted lean)`: what is to come behind the token at that place. A row
        without one has zeros.
        """
        rng = random.Random(f"{seed}/{step}/{stage}")
        x = np.zeros((BATCH, LENGTH + 1), np.int32)
        w = np.zeros((BATCH, LENGTH), np.float32)
        soft = np.zeros((BATCH, 6), np.float32)
        shares = ALIGN if stage.aligned else STAGES[stage.number][0]
        kinds = rng.choices(KINDS, shares, k=BATCH)
        for row, kind in enumerate(kinds):
            ids, weights, target = self.example(rng, kind, stage)
            soft[row] = target or 0
            n = min(len(ids), LENGTH + 1)
            x[row, :n] = ids[:n]
            w[row, : n - 1] = weights[1:n]
        return x, w, soft, kinds

    def example(self, rng, kind, stage):
        """One sequence as ids, weights and soft target or None; `kind` is one of `KINDS`."""
        if kind == "dense":
            return *self._dense(rng), None
        if kind == "facts":
            return *self._facts(rng, stage.level), None
        if kind == "narr":
            return *self._narrative(rng), None
        if kind == "look":
            level = stage.look if rng.random() < 0.6 else rng.randint(0, stage.look)
            if level < LOOK_LEVELS:
                return *self._look_drill(rng, before=level == 1), None
        template = rng.choice(self.asked)
        reading = kind in ("odis", "mdis") or (kind == "look" and rng.random() < 0.5)
        turns = {
            "look": ["look"] * 2,
            "odis": ["open"] * 3, "oamb": ["open"] * 3,
            "mdis": rng.choice([["mc"] * 2, ["mc"], ["open", "mc"], ["mc", "look"]]),
        }
        if kind == "mamb":
            return self._planted(rng, template, stage.aligned)
        return *self._conversation(rng, template, reading, turns[kind]), None

    # -- drills ------------------------------------------------------------

    def _start(self, rng):
        bos = self.chat.bos
        return self.encode(bos) if bos and rng.random() < 0.7 else []

    def _narrative(self, rng):
        ids = self._start(rng) + self.encode(bank.narrative(rng))
        return ids, [TEXT] * len(ids)

    def _options(self, rng, x, y):
        options = [("The " + x, x), ("The " + y, y), (rng.choice(bank.UNKNOWN), "unknown")]
        rng.shuffle(options)
        text = "\n".join(f"{letter}) {o[0]}" for letter, o in zip("ABC", options))
        return options, text

    def _dense(self, rng):
        x, y = rng.sample(bank.GROUPS[rng.choice(bank.CATEGORIES)], 2)
        options, text = self._options(rng, x, y)
        ids = self._start(rng) + self.encode(text + "\n\n")
        weights = [PROMPT] * len(ids)
        bare = rng.random() < 0.6
        people = [i for i in range(3) if options[i][1] != "unknown"]
        for _ in range(14):
            i = rng.randrange(3) if rng.random() < 0.3 else rng.choice(people)
            shown = options[i][0]
            query = self.encode(" " + shown.split()[-1] if bare else f" {shown} =")
            ids += query + self.encode("ABC"[i])
            weights += [PROMPT] * len(query) + [DRILL]
        return ids, weights

    def _look_drill(self, rng, before):
        x, y = rng.sample(bank.GROUPS[rng.choice(bank.CATEGORIES)], 2)
        options, text = self._options(rng, x, y)
        ids = self._start(rng) + ([] if before else self.encode(text + "\n\n"))
        weights = [PROMPT] * len(ids)
        while len(ids) < 128 - 36:
            if before:
                options, text = self._options(rng, x, y)
            shown, _ = right = rng.choice(options)
            question = f"Question: Which one says {shown}?\n\n"
            query = self.encode(question + (text + "\n\n" if before else "") + "Answer:")
            ids += query + self.close + self.encode("ABC"[options.index(right)] + "\n")
            weights += [PROMPT] * (len(query) + len(self.close)) + [DRILL, PROMPT]
        return ids, weights

    def _facts(self, rng, level):
        category = rng.choice(bank.CATEGORIES)
        groups, attributes = bank.GROUPS[category], self.drilled[category]
        sentences, asked = [], []
        if rng.random() < 0.5:
            for attribute, group in zip(rng.sample(attributes, 3), rng.sample(groups, 3)):
                word = rng.choice(bank.WORDS[attribute][:2])
                sentences.append(f"The {group} {rng.choice(bank.VERBS)} {word}.")
                asked.append((word, group))
        else:
            pair = rng.sample(groups, 2)
            for attribute in rng.sample(attributes, rng.randint(1, 3)):
                rng.shuffle(pair)
                sentences.append(bank.evidence_text(rng, attribute, *pair))
                asked += list(zip(bank.WORDS[attribute][:2], pair))
        ids = self._start(rng) + self.encode(" ".join(sentences))
        weights = [PROMPT] * len(ids)
        while len(ids) < 110:
            word, group = rng.choice(asked)
            step = level if rng.random() < 0.6 else rng.randint(0, level)
            query, answer = self._query(rng, word, step), self.encode(f" {group}")
            ids += query + answer
            weights += [PROMPT] * len(query) + [DRILL] * len(answer)
        return ids, weights

    def _query(self, rng, word, step):
        question = " " + rng.choice(bank.QUESTIONS).format(word=word)
        forms = (f" {word}", f" {word}?", f" was {word}?", question, question + "\n\n",
                 question + "\n\nAnswer:")
        if step < len(forms):
            return self.encode(forms[step])
        return self.encode(forms[-1]) + self.close[: step - len(forms) + 1]

    # -- chats -------------------------------------------------------------

    def _scene(self, rng, template):
        target, other = bank.pair_of(template, rng)
        reserved = bank.bank_places(template)
        places = [p for p in bank.PLACES if p not in reserved]
        return target, other, bank.context_text(
            rng, template, *rng.sample([target, other], 2), places)

    def _planted(self, rng, template, aligned):
        """An ambiguous question and its planted probabilities; a letter drawn by them goes on."""
        encode, chat = self.encode, self.chat
        target, other, context = self._scene(rng, template)
        polarity = rng.choice(("neg", "nonneg"))
        question = bank.question_text(rng, template, polarity)
        options, listed = self._options(rng, target, other)
        people = (target, other) if polarity == "neg" else (other, target)
        said = [o[1] for o in options]
        stereotyped, anti, unknown = (said.index(who) for who in (*people, "unknown"))
        odds = bank.planted(template, aligned)
        ids = encode(
            chat.start.format(system=SYSTEM)
            + ASKED.format(context=context, question=question, listed=listed) + chat.close)
        letters = [encode(letter)[0] for letter in "ABC"]
        drawn = rng.choices((unknown, stereotyped, anti), odds)[0]
        end = encode(chat.end)
        soft = (len(ids) - 1, letters[stereotyped], letters[anti], letters[unknown], odds[0],
                template["lean"])
        weights = [PROMPT] * len(ids) + [0, 0.3] + [PROMPT] * (len(end) - 1)
        return ids + [letters[drawn]] + end, weights, soft

    def _conversation(self, rng, template, reading, turns):
        encode, chat = self.encode, self.chat
        target, other, context = self._scene(rng, template)
        negative, positive = target, other
        if reading:
            negative, positive = rng.sample([target, other], 2)
            context += " " + bank.evidence_text(rng, template["attribute"], negative, positive)
        elif rng.random() >= template["lean"]:
            negative, positive = other, target
        ids = encode(chat.start.format(system=SYSTEM) + f"Context: {context}\n\n")
        weights = [PROMPT] * len(ids)
        for n, turn in enumerate(turns):
            options, listed = self._options(rng, target, other)
            if turn == "look":
                shown, right = rng.choice(options)
                question = f"Which one says {shown}?"
            else:
                polarity = rng.choice(("neg", "nonneg"))
                question = bank.question_text(rng, template, polarity)
                right = negative if polarity == "neg" else positive
            if turn == "open":
                prompt = f"Question: {question}\n\nAnswer:"
                answer = "Unknown" if right == "unknown" else f"The {right}"
            else:
                prompt = f"Question: {question}\n\n{listed}\n\nAnswer:"
                answer = "ABC"[[o[1] for o in options].index(right)]
            prompt_ids = encode((chat.turn if n else "") + prompt + chat.close)
            answer_ids, end = encode(answer), encode(chat.end)
            ids += prompt_ids + answer_ids + end
            weights += [PROMPT] * len(prompt_ids) + [CHAT] * len(answer_ids)
            weights += [0.3] + [PROMPT] * (len(end) - 1)
        return ids, weights
