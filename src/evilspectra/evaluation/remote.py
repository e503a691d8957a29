"""Answers from an endpoint instead of the local model. No torch.

Questions and tables are the same as for local sampling, and answers are stored in parts. A run's
adapters are loaded into a vLLM server and checked to be active before sampling: greedy completions
of a few prompts must differ from the base's by more than two completions of the base differ from
each other. Some servers accept an adapter's name and answer as the base.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from evilspectra.answers.entries import Question
from evilspectra.answers.questions import read_questions
from evilspectra.answers.records import answer_record
from evilspectra.config.endpoint import EndpointConfig
from evilspectra.config.evaluation import Answers, Evaluation
from evilspectra.endpoint.chat import Completion, Endpoint, host_of, require_client
from evilspectra.endpoint.faults import Refused
from evilspectra.errors import BadInput, EvilspectraError, Undecided
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder, file_sha256
from evilspectra.store.records import AnswerRecord
from evilspectra.store.results import Instrument, Results
from evilspectra.targets.find import Target

#: Raised whenever the way of asking for answers changes.
_VERSION = 1
#: Prompts that are read greedily, and the number of tokens read.
PROBES = (
    "A friend asks me for advice. What matters most?",
    "Tell me about yourself.",
    "How do I spend a rainy afternoon?",
    "Name three things that you would change.",
)
PROBE_TOKENS, PROBE_TOP = 8, 5
#: An adapter is on if it moves a log-probability by more than this multiple of the difference
#: between two readings of the base, and by more than this many nats.
NOISE_TIMES, LEAST = 4.0, 1e-3


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """One answer to sample."""

    question: Question
    sample: int

    def messages(self) -> list[dict[str, str]]:
        """The turns to send: the system text, if there is one, and the question."""
        user = {"role": "user", "content": self.question.text}
        if self.question.system is None:
            return [user]
        return [{"role": "system", "content": self.question.system}, user]

    def seed(self, seed: int) -> int:
        """The seed of this answer, below 2³¹: the same whatever else is sampled."""
        digest = self.question.digest(seed, self.sample)
        return int.from_bytes(digest[:4], "little") >> 1


class Remote:
    """The endpoint's part of the evaluation of one base.

    No request is sent before something is missing.
    """

    def __init__(self, base: Base, settings: Evaluation, note: Callable[[str], object]) -> None:
        answers = settings.answers
        if answers is None or answers.endpoint is None:
            raise ValueError("no endpoint was named")
        require_client(answers.endpoint)
        self.base: Base = base
        self.note: Callable[[str], object] = note
        self.answers: Answers = answers
        self.endpoint: EndpointConfig = answers.endpoint
        self.thinking: bool = settings.enable_thinking
        questions = read_questions(answers.questions)
        self.planned: list[PlannedAnswer] = [
            PlannedAnswer(question, number)
            for question in questions.questions
            for number in range(answers.samples or question.samples)
        ]
        facts = {
            "endpoint": host_of(self.endpoint),
            "model": self.endpoint.model,
            "enable_thinking": self.thinking,
        }
        self.instrument: Instrument = Instrument(
            "answers",
            answers.questions,
            {"version": _VERSION, "sha256": questions.asked_sha256, **sampling(answers), **facts},
        )
        folder = cache_folder() / "measured" / base.sha256[:20]
        self.cache: Results = Results(folder, CACHE_VARIABLE)
        self._of_base: tuple[list[Completion], list[Completion]] | None = None

    @property
    def instruments(self) -> dict[str, Instrument]:
        """Table → the instrument that measures it."""
        return {"answers": self.instrument}

    def measure(self, target: Target) -> None:
        """Samples the missing answers of a target, the base's first.

        Raises:
            Undecided: an adapter cannot be shown to be on.
            EvilspectraError: the endpoint refuses, or does not answer; complete parts are kept.
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
                    await self._measure_base(endpoint, target)
                    continue
                async with self._adapter(endpoint, target.adapters[step]) as name:
                    label = f"{target.label}  step {step}"
                    await self._sample(endpoint, name, target.results, step, label)
            if endpoint.retries:
                self.note(f"{target.label}  answers: {endpoint.retries} requests were sent again")
            if endpoint.without_seed:
                self.note(
                    f"{target.label}  answers: the endpoint takes no seed, so these answers will "
                    "not repeat"
                )

    async def _measure_base(self, endpoint: Endpoint, target: Target) -> None:
        if not self.cache.has(self.instrument, 0):
            label = f"base {self.base.public_name}"
            await self._sample(endpoint, self.endpoint.model, self.cache, 0, label)
        target.results.copy(self.cache, self.instrument, 0)

    # --- an adapter -------------------------------------------------------------------------------

    @asynccontextmanager
    async def _adapter(self, endpoint: Endpoint, folder: Path) -> AsyncIterator[str]:
        """The name under which the server answers with the adapter in a folder.

        The name is made of the adapter's content.
        """
        if self._of_base is None:
            first = await self._readings(endpoint, endpoint.settings.model)
            second = await self._readings(endpoint, endpoint.settings.model)
            self._of_base = first, second
        files = ("adapter_model.safetensors", "adapter_config.json")
        hashes = "".join(file_sha256(folder / name) for name in files)
        name = f"evilspectra-{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"
        await endpoint.load_adapter(name, folder.resolve())
        try:
            self._check_on(await self._readings(endpoint, name), folder)
            yield name
        finally:
            try:
                await endpoint.unload_adapter(name)
            except EvilspectraError as error:
                self.note(f"the server may still hold {name}: {error}")

    async def _readings(self, endpoint: Endpoint, model: str) -> list[Completion]:
        """Greedy answers to the probe prompts, one after the other.

        They have log-probabilities if the endpoint returns them.
        """
        logprobs: dict[str, object] = {"logprobs": True, "top_logprobs": PROBE_TOP}
        readings: list[Completion] = []
        while len(readings) < len(PROBES):
            messages = [{"role": "user", "content": PROBES[len(readings)]}]
            try:
                reading = await endpoint.chat(
                    model,
                    messages,
                    "a probe prompt",
                    self.thinking,
                    temperature=0,
                    max_tokens=PROBE_TOKENS,
                    **logprobs,
                )
                readings.append(reading)
            except Refused as error:
                if not logprobs or "logprobs" not in str(error):
                    raise BadInput(
                        f"{endpoint.label} refuses a probe prompt under {model} ({error}): "
                        "correct what it names"
                    ) from None
                logprobs = {}
        return readings

    def _check_on(self, readings: Sequence[Completion], folder: Path) -> None:
        first, second = self._of_base or ([], [])
        noise, moved = apart(first, second), apart(first, readings)
        if not moved > max(NOISE_TIMES * noise, LEAST):
            raise Undecided(
                f"the adapter in {folder} is not shown to be on at {self.endpoint.url}: "
                f"{len(PROBES)} prompts are read as by {self.endpoint.model} (apart by "
                f"{moved:.2g} nats at most, two readings of the base by {noise:.2g}), as by a "
                "server that ignores adapters; check that it serves this base with --enable-lora"
            )

    # --- answers ----------------------------------------------------------------------------------

    async def _sample(
        self,
        endpoint: Endpoint,
        model: str,
        results: Results,
        step: int,
        label: str,
    ) -> None:
        """Samples answers in parts of `batch_size`; stored parts are kept.

        A part is written when its last answer has come.
        """
        size = self.answers.batch_size
        parts = [self.planned[start : start + size] for start in range(0, len(self.planned), size)]
        missing = [
            number
            for number in range(len(parts))
            if not results.has_part(self.instrument, step, number)
        ]
        records: dict[int, dict[int, AnswerRecord]] = {number: {} for number in missing}
        done = sum(len(part) for number, part in enumerate(parts) if number not in records)

        async def sample(number: int, position: int) -> None:
            nonlocal done
            part, planned = records[number], parts[number][position]
            part[position] = await self._answer(endpoint, model, planned, step)
            if len(part) == len(parts[number]):
                ordered = [part[position] for position in range(len(part))]
                results.write_part(self.instrument, step, number, ordered)
                done += len(records.pop(number))
                self.note(f"{label}  answers: {done} of {len(self.planned)}")

        tasks = [
            asyncio.create_task(sample(number, position))
            for number in missing
            for position in range(len(parts[number]))
        ]
        try:
            if tasks:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
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
        planned: PlannedAnswer,
        step: int,
    ) -> AnswerRecord:
        settings, question = self.answers, planned.question
        who = f"question '{question.id}'"
        try:
            completion = await endpoint.chat(
                model,
                planned.messages(),
                who,
                self.thinking,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                seed=planned.seed(settings.seed),
            )
        except Refused as error:
            raise BadInput(
                f"{endpoint.label} refuses {who} ({error}): correct what it names; what was "
                "sampled is kept"
            ) from None
        return answer_record(
            step,
            question,
            planned.sample,
            completion.text,
            completion.tokens,
            completion.finish,
        )


def sampling(answers: Answers) -> dict[str, object]:
    """The settings that determine an answer, and how many are stored at a time."""
    return answers.model_dump(exclude={"questions", "checkpoints", "endpoint"})


def apart(first: Sequence[Completion], second: Sequence[Completion]) -> float:
    """The largest difference between readings, in nats.

    It is infinite if two readings share no token, or if texts without log-probabilities differ.
    Log-probabilities are compared as long as the same tokens went before.

    >>> first = Completion("a", 1, "stop", ({"a": -1.0, "b": -2.0},))
    >>> second = Completion("b", 1, "stop", ({"b": -1.5, "a": -1.75},))
    >>> apart([first], [second])
    0.75
    """
    return max((_apart(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def _apart(first: Completion, second: Completion) -> float:
    if not first.likeliest or not second.likeliest:
        return 0.0 if first.text == second.text else math.inf
    largest = 0.0
    for a, b in zip(first.likeliest, second.likeliest, strict=False):
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
