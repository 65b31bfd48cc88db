"""A judge of generated answers: a function, or a model behind an OpenAI-compatible address.

A judge says whether a text answers a prompt with one of the expected answers. An error of the judge, such as a
time-out, is stored beside the text and stops nothing.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fasttrace.errors import UserError
from fasttrace.optional import require
from fasttrace.settings.edit import EditingSettings

# judge(prompt, answers, text) → whether the text, which follows the prompt, gives one of the answers.
Judge = Callable[[str, Sequence[str], str], bool]
log = logging.getLogger("fasttrace.editing")
Question = tuple[str, tuple[str, ...], str]  # prompt, answers, text


class Judgement(NamedTuple):
    """judged_after: what the judge says of a text after the edit, None where it says nothing. judge_error: why."""

    judged_after: bool | None = None
    judge_error: str | None = None


KEYS = ("FASTTRACE_JUDGE_KEY", "OPENAI_API_KEY")
AT_ONCE = 8  # questions that are asked at the same time
QUESTION = """\
A language model continued a text. Does its continuation give one of the expected answers, without contradicting it?
A longer or differently worded continuation counts, if it means the same. Reply with YES or NO and nothing else.

Text: {prompt}
Expected: {answers}
Continuation: {text}"""


def judge_of(asked: EditingSettings, judge: Judge | None) -> Judge | None:
    """The judge that is asked for: the function, the model at `judge_url`, or None.

    Raises UserError where both are given or nothing is generated, and PackageError where `openai` is missing.
    """
    if judge is None and asked.judge_url is None:
        return None
    if judge is not None and asked.judge_url is not None:
        raise UserError("judge: expected a function or judge_url, got both")
    if not asked.generate:
        raise UserError("judge: expected generate of at least 1 token, as a judge reads generated text, got 0")
    return judge if judge is not None else _ModelAt(asked)


class _ModelAt:
    """The model at `judge_url`, asked as a `Judge`. A copy in another process asks it with the key there."""

    def __init__(self, asked: EditingSettings) -> None:
        openai = require("openai")
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
        self.asked = asked
        self._client = openai.AsyncOpenAI(base_url=asked.judge_url, api_key=key, timeout=None, max_retries=1)
        # A loop of its own, because only a task can be cancelled: a blocking client bounds each read, not the
        # judgement.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ModelAt, (self.asked,)

    def __call__(self, prompt: str, answers: Sequence[str], text: str) -> bool:
        question = QUESTION.format(prompt=prompt, answers=" or ".join(answers), text=text)
        try:
            said = asyncio.run_coroutine_threadsafe(self._reply(question), self._loop).result()
        except TimeoutError:
            raise TimeoutError(f"expected an answer within {self.asked.judge_timeout:g} s, got none") from None
        return _verdict(said)

    async def _reply(self, question: str) -> Any:
        asking = self._client.chat.completions.create(
            model=self.asked.judge_model, messages=[{"role": "user", "content": question}], temperature=0
        )
        return await asyncio.wait_for(asking, self.asked.judge_timeout)


def _verdict(said: Any) -> bool:
    """Whether a reply says yes, after what the model may have thought aloud. Raises ValueError for another reply."""
    try:
        text = said.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError):
        raise ValueError(f"expected a chat completion, got {str(said)[:80]!r}") from None
    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if word is None:
        raise ValueError(f"expected YES or NO, got {text[:80]!r}")
    return word[1].lower() == "yes"


def judged(judge: Judge, questions: Iterable[Question]) -> dict[Question, Judgement]:
    """What a judge says of each question, which is asked once."""
    ordered = sorted(set(questions))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = dict(zip(ordered, pool.map(lambda one: _answer(judge, *one), ordered), strict=True))
    if failed := [one.judge_error for one in said.values() if one.judge_error is not None]:
        log.warning("%d of %d judgements failed, the first: %s", len(failed), len(said), failed[0])
    return said


def _answer(judge: Judge, prompt: str, answers: Sequence[str], text: str) -> Judgement:
    try:
        return Judgement(bool(judge(prompt, answers, text)))
    except Exception as error:  # whatever a judge raises is its answer
        first = (str(error).splitlines() or [""])[0]
        return Judgement(judge_error=f"{type(error).__name__}: {first}"[:200])
