"""Answers from an endpoint instead of the local model: the same questions, the same tables, a part stored at a time. No torch.

A run's adapters are loaded into the server, a vLLM one, and shown to be on before anything is sampled: greedy readings of a few
prompts must differ from the base's by more than two readings of the base differ. Servers exist that take an adapter's name and answer as the base.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from evilspectra.answers.flags import flags
from evilspectra.answers.questions import Question, read_questions
from evilspectra.config.evaluation import Answers, Evaluation
from evilspectra.endpoint.client import Endpoint, Refused, Said, place, require_client
from evilspectra.errors import BadInput, EvilspectraError, Undecided
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder, file_sha256
from evilspectra.store.records import AnswerRecord
from evilspectra.store.results import Instrument, Results
from evilspectra.targets.find import Target

#: Raised whenever how answers are asked for changes.
_VERSION = 1
#: Prompts that are read greedily, and how far.
PROBES = (
    "A friend asks me for advice. What matters most?",
    "Tell me about yourself.",
    "How do I spend a rainy afternoon?",
    "Name three things that you would change.",
)
PROBE_TOKENS, PROBE_TOP = 8, 5
#: An adapter is on if it moves a log-probability by more than so many times what two readings of the base differ by, and by more than so many nats.
NOISE_TIMES, LEAST = 4.0, 1e-3


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer to be sampled."""

    question: Question
    sample: int

    def messages(self) -> list[dict[str, str]]:
        system = (
            []
            if self.question.system is None
            else [{"role": "system", "content": self.question.system}]
        )
        return [*system, {"role": "user", "content": self.question.text}]

    def seed(self, seed: int) -> int:
        """A seed of the answer's own, below 2³¹: the same whatever else is asked."""
        name = "\0".join(
            map(
                str,
                (
                    seed,
                    self.question.id,
                    self.question.paraphrase,
                    self.question.system,
                    self.question.text,
                    self.sample,
                ),
            )
        )
        return (
            int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:4], "little")
            >> 1
        )


class Remote:
    """The endpoint's part of the evaluation of one base; nothing is asked before something is missing."""

    def __init__(self, base: Base, settings: Evaluation, note: Callable[[str], object]) -> None:
        answers = settings.answers
        if answers is None or answers.endpoint is None:
            raise ValueError("no endpoint was named")
        require_client(answers.endpoint)
        self.base, self.answers, self.endpoint, self.thinking, self.note = (
            base,
            answers,
            answers.endpoint,
            settings.enable_thinking,
            note,
        )
        questions = read_questions(answers.questions)
        self.planned = [
            Asked(question, number)
            for question in questions.questions
            for number in range(answers.samples or question.samples)
        ]
        facts = {
            "endpoint": place(self.endpoint),
            "model": self.endpoint.model,
            "enable_thinking": self.thinking,
        }
        self.instrument = Instrument(
            "answers",
            answers.questions,
            {"version": _VERSION, "sha256": questions.asked_sha256, **sampling(answers), **facts},
        )
        self.cache = Results(cache_folder() / "measured" / base.sha256[:20], CACHE_VARIABLE)
        self._of_base: tuple[list[Said], list[Said]] | None = None

    @property
    def instruments(self) -> dict[str, Instrument]:
        """Table → what it is measured with."""
        return {"answers": self.instrument}

    def measure(self, target: Target) -> None:
        """Samples what is missing of a target, the base first.

        Raises:
            Undecided: an adapter cannot be shown to be on.
            EvilspectraError: the endpoint refuses, or does not answer; the parts that are whole are kept.
        """
        steps = [0, *target.adapters] if self.answers.checkpoints else sorted({0, target.last})
        missing = [step for step in steps if not target.results.has(self.instrument, step)]
        if not missing:
            self.note(f"{target.label}  measured before")
            return
        asyncio.run(self._measure(target, missing))

    async def _measure(self, target: Target, missing: Sequence[int]) -> None:
        async with Endpoint(self.endpoint) as endpoint:
            for step in missing:
                if step == 0:
                    if not self.cache.has(self.instrument, 0):
                        await self._sample(
                            endpoint,
                            self.endpoint.model,
                            self.cache,
                            0,
                            f"base {self.base.public_name}",
                        )
                    target.results.copy(self.cache, self.instrument, 0)
                else:
                    async with self._adapter(endpoint, target.adapters[step]) as name:
                        await self._sample(
                            endpoint, name, target.results, step, f"{target.label}  step {step}"
                        )
            if endpoint.retries:
                self.note(f"{target.label}  answers: {endpoint.retries} requests were sent again")
            if endpoint.without_seed:
                self.note(
                    f"{target.label}  answers: the endpoint takes no seed, so these answers will not repeat"
                )

    # --- an adapter -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _adapter(self, endpoint: Endpoint, folder: Path) -> AsyncIterator[str]:
        """The name under which the server answers with the adapter in a folder; the name is made of its content."""
        if self._of_base is None:
            self._of_base = (
                await self._readings(endpoint, endpoint.settings.model),
                await self._readings(endpoint, endpoint.settings.model),
            )
        digest = hashlib.sha256(
            (
                file_sha256(folder / "adapter_model.safetensors")
                + file_sha256(folder / "adapter_config.json")
            ).encode()
        ).hexdigest()
        name = f"evilspectra-{digest[:12]}"
        await endpoint.load_adapter(name, folder.resolve())
        try:
            self._check_on(await self._readings(endpoint, name), folder)
            yield name
        finally:
            try:
                await endpoint.unload_adapter(name)
            except EvilspectraError as error:
                self.note(f"the server may still hold {name}: {error}")

    async def _readings(self, endpoint: Endpoint, model: str) -> list[Said]:
        """Greedy answers to the probe prompts, one after the other, with log-probabilities where the endpoint gives them."""
        wanted: dict[str, object] = {"logprobs": True, "top_logprobs": PROBE_TOP}
        found: list[Said] = []
        while len(found) < len(PROBES):
            messages = [{"role": "user", "content": PROBES[len(found)]}]
            try:
                found.append(
                    await endpoint.chat(
                        model,
                        messages,
                        "a probe prompt",
                        self.thinking,
                        temperature=0,
                        max_tokens=PROBE_TOKENS,
                        **wanted,
                    )
                )
            except Refused as error:
                if not wanted or "logprobs" not in str(error):
                    raise BadInput(
                        f"{endpoint.label} refuses a probe prompt under {model} ({error}): correct what it names"
                    ) from None
                wanted = {}
        return found

    def _check_on(self, readings: Sequence[Said], folder: Path) -> None:
        first, second = self._of_base or ([], [])
        noise, moved = apart(first, second), apart(first, readings)
        if not moved > max(NOISE_TIMES * noise, LEAST):
            raise Undecided(
                f"the adapter in {folder} is not shown to be on at {self.endpoint.url}: {len(PROBES)} prompts are read as by {self.endpoint.model}"
                f" (apart by {moved:.2g} nats at most, two readings of the base by {noise:.2g}), as by a server that ignores adapters; check that it serves this base with --enable-lora"
            )

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _sample(
        self,
        endpoint: Endpoint,
        model: str,
        results: Results,
        step: int,
        label: str,
    ) -> None:
        """Answers in parts of `batch_size`; a part is written when its last answer is there, and parts that are there are kept."""
        size = self.answers.batch_size
        parts = [self.planned[start : start + size] for start in range(0, len(self.planned), size)]
        missing = [
            number
            for number in range(len(parts))
            if not results.has_part(self.instrument, step, number)
        ]
        found: dict[int, dict[int, AnswerRecord]] = {number: {} for number in missing}
        done = sum(len(part) for number, part in enumerate(parts) if number not in found)

        async def one(number: int, at: int, asked: Asked) -> None:
            nonlocal done
            found[number][at] = await self._answer(endpoint, model, asked, step)
            if len(found[number]) == len(parts[number]):
                results.write_part(
                    self.instrument,
                    step,
                    number,
                    [found[number][at] for at in range(len(parts[number]))],
                )
                done += len(found.pop(number))
                self.note(f"{label}  answers: {done} of {len(self.planned)}")

        tasks = [
            asyncio.create_task(one(number, at, asked))
            for number in missing
            for at, asked in enumerate(parts[number])
        ]
        try:
            ended, _ = (
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if tasks
                else (set(), None)
            )
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        results.join(self.instrument, step, len(parts))

    async def _answer(
        self,
        endpoint: Endpoint,
        model: str,
        asked: Asked,
        step: int,
    ) -> AnswerRecord:
        settings, question = self.answers, asked.question
        who = f"question '{question.id}'"
        try:
            said = await endpoint.chat(
                model,
                asked.messages(),
                who,
                self.thinking,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                seed=asked.seed(settings.seed),
            )
        except Refused as error:
            raise BadInput(
                f"{endpoint.label} refuses {who} ({error}): correct what it names; what was sampled is kept"
            ) from None
        return AnswerRecord(
            step,
            question.id,
            question.paraphrase,
            asked.sample,
            question.system,
            question.text,
            said.text,
            said.tokens,
            said.finish,
            ",".join(flags(said.text, said.finish)),
        )


def sampling(answers: Answers) -> dict[str, object]:
    """The settings that determine an answer, and how many are stored at a time."""
    return answers.model_dump(exclude={"questions", "checkpoints", "endpoint"})


def apart(one: Sequence[Said], other: Sequence[Said]) -> float:
    """The largest difference between readings, in nats; infinite where they share no token, or texts without log-probabilities differ.

    Log-probabilities are compared as long as the same tokens went before.

    >>> apart([Said("a", 1, "stop", ({"a": -1.0, "b": -2.0},))], [Said("b", 1, "stop", ({"b": -1.5, "a": -1.75},))])
    0.75
    """
    return max((_apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _apart(one: Said, other: Said) -> float:
    if not one.likeliest or not other.likeliest:
        return 0.0 if one.text == other.text else math.inf
    largest = 0.0
    for a, b in zip(one.likeliest, other.likeliest, strict=False):
        shared = [
            abs(a[token] - b[token])
            for token in a.keys() & b.keys()
            if math.isfinite(a[token]) or math.isfinite(b[token])
        ]
        largest = max(largest, *shared) if shared else math.inf
        if _likeliest(a) != _likeliest(b):
            break
    return largest


def _likeliest(shares: Mapping[str, float]) -> str:
    return max(shares, key=lambda token: shares[token])
