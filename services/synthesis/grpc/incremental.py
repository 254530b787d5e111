"""A text that arrives in pieces and is spoken while it arrives: the tokens of a language model.

Three parties share a `Conversation`. The *reader* takes in what the client says and cuts it into sentences. The
*speaker* speaks one sentence after the other into a short queue. The *writer* packs what is in the queue and sends
it; it alone writes, and it waits for a slow client, for which the others then wait in turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from services.synthesis.access import metered
from services.synthesis.grpc.packing import TimedLike, Times, speech_start, timestamps
from services.synthesis.grpc.requests import Wanted
from services.synthesis.packing import Packer
from services.synthesis.pieces import Pieces
from services.synthesis.speaker import Speaker, Speaking
from shared.audio import Samples
from shared.errors import OverloadedError, RequestError, StoppingError, TextError
from shared.protos.vits.synthesis.v1 import synthesis_pb2 as pb
from shared.text.segmentation import SENTENCE_PAUSE

if TYPE_CHECKING:
    from services.synthesis.grpc.servicer import Call

#: Text that has been sent and not been spoken; more is refused.
MAX_WAITING_CHARACTERS = 65_536

#: Flushes and cancels that have not been answered; more are refused.
MAX_UNANSWERED = 1000

#: Chunks that may wait for a slow client before nothing more is computed for it.
MAX_WAITING_CHUNKS = 4


@dataclass(frozen=True)
class Beginning:
    """A sentence begins. Without a `Speaking` there is nothing in it to speak."""

    text: str
    speaking: Speaking | None


@dataclass(frozen=True)
class Sound:
    """Samples [S] of a sentence, and the words or tokens that were timed since the last."""

    samples: Samples
    timed: Sequence[TimedLike]


#: What the reader hands on: sentences, and what the client has asked for between them.
Said = str | pb.Flushed | pb.Cancelled | None
#: What the speaker hands on. None is the end.
Event = Beginning | Sound | pb.Flushed | pb.Cancelled | None


class Conversation:
    """One call of ``SynthesizeIncremental``, after its first message.

    Args:
        speaker: Speaks.
        call: The call.
        wanted: How to speak, and the first piece of the text.
        draining: Set when the server is about to stop: what has been sent is spoken, and the call ends.
    """

    def __init__(self, speaker: Speaker, call: Call, wanted: Wanted, draining: asyncio.Event) -> None:
        self._speaker = speaker
        self._call = call
        self._wanted = wanted
        self._draining = draining
        self._pieces = Pieces()
        self._said: deque[Said] = deque()
        self._events: deque[Event] = deque()
        self._changed = asyncio.Condition()
        self._sentence: asyncio.Task[None] | None = None
        self._cut_short = False
        self._packer: Packer | None = None
        self._unanswered = 0
        self._samples = 0
        self._rate = 0

    async def run(self) -> None:
        """Speak until the client has said everything.

        Raises:
            VitsError: What was sent cannot be spoken.
            StoppingError: The server is about to stop, and the client had not said that this was all.
        """
        await self._take_in(self._wanted.order.text)
        parties = [asyncio.create_task(party()) for party in (self._read, self._speak, self._write)]
        try:
            done, _ = await asyncio.wait(parties, return_when=asyncio.FIRST_EXCEPTION)
            for party in done:
                party.result()
        finally:
            tasks = [*parties, *([self._sentence] if self._sentence else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._cut_short:
            raise StoppingError(
                "The server is about to stop; what had been sent was spoken. Call again for the rest",
                retry_after_seconds=1.0,
            )
        await self._send(end=pb.SpeechEnd(duration_seconds=self._seconds))

    # The reader.

    async def _read(self) -> None:
        while (message := await self._next_message()) is not None:
            event = message.WhichOneof("event")
            if event == "text":
                await self._take_in(message.text)
            elif event == "flush":
                self._owe_an_answer()
                await self._hand_on(*self._pieces.flush(), pb.Flushed())
            elif event == "cancel":
                self._owe_an_answer()
                await self._forget()
            else:
                raise RequestError(
                    f"{event or 'event'}: a message after the first must be a text, a flush or a cancel",
                    param=event or "event",
                )
        await self._hand_on(*self._pieces.flush(), None)

    async def _next_message(self) -> pb.SynthesizeIncrementalRequest | None:
        """What the client says next; None when it has said everything, or the server is about to stop."""
        reading = asyncio.ensure_future(self._call.context.read())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._cut_short = True
                return None
            message = reading.result()
        finally:
            reading.cancel()
            draining.cancel()
        if message is grpc.aio.EOF:
            return None
        if not isinstance(message, pb.SynthesizeIncrementalRequest):
            raise RequestError(
                "The message is not one of this method: its bytes cannot be read as protocol buffers"
            )
        return message

    async def _take_in(self, text: str) -> None:
        waiting = self._pieces.waiting + sum(len(said) for said in self._said if isinstance(said, str))
        if waiting + len(text) > MAX_WAITING_CHARACTERS:
            raise OverloadedError(
                f"text: {waiting} characters are waiting to be spoken already, and {len(text)} more are too many: "
                f"at most {MAX_WAITING_CHARACTERS} may wait. Send them as the audio comes",
                retry_after_seconds=1.0,
            )
        await self._hand_on(*self._pieces.add(text))

    def _owe_an_answer(self) -> None:
        self._unanswered += 1
        if self._unanswered > MAX_UNANSWERED:
            raise OverloadedError(
                f"{MAX_UNANSWERED} flushes and cancels wait for their answers already: read them first",
                retry_after_seconds=1.0,
            )

    async def _hand_on(self, *said: Said) -> None:
        async with self._changed:
            self._said.extend(said)
            self._changed.notify_all()

    async def _forget(self) -> None:
        """Obey a cancel: whatever has not been sent is dropped, but for answers to earlier flushes and cancels."""
        self._pieces.flush()
        async with self._changed:
            answers = [event for event in self._events if isinstance(event, pb.Flushed | pb.Cancelled)]
            answers += [said for said in self._said if isinstance(said, pb.Flushed | pb.Cancelled)]
            self._said.clear()
            self._events.clear()
            if self._sentence:
                self._sentence.cancel()
            self._events.extend([*answers, pb.Cancelled()])
            self._changed.notify_all()

    # The speaker.

    async def _speak(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._said))
                said = self._said.popleft()
                if isinstance(said, str):
                    self._sentence = asyncio.create_task(self._speak_sentence(said))
                else:
                    self._events.append(said)
                    self._changed.notify_all()
            if said is None:
                return
            if self._sentence:
                sentence = self._sentence
                await asyncio.wait({sentence})
                self._sentence = None
                if not sentence.cancelled():
                    sentence.result()

    async def _speak_sentence(self, text: str) -> None:
        order = replace(self._call.order(self._wanted), text=text)
        try:
            begun = await self._speaker.start(order)
        except TextError:
            # Punctuation alone, say: no reason to end the conversation.
            await self._put(Beginning(text, None))
            return
        async with begun as speaking:
            # From the first sentence on it is this seed, and this version even if another is published meanwhile.
            pinned = replace(
                self._wanted.order, seed=speaking.seed, voice=f"{speaking.voice}/{speaking.voice_version}"
            )
            self._wanted = replace(self._wanted, order=pinned)
            await self._put(Beginning(text, speaking))
            times = Times(speaking, self._wanted)
            async for samples in metered(speaking, self._call.caller, self._call.max_audio_seconds):
                await self._put(Sound(samples, times.new()))
            if rest := times.new():
                await self._put(Sound(np.zeros(0, np.float32), rest))

    async def _put(self, event: Event) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._events) < MAX_WAITING_CHUNKS)
            self._events.append(event)
            self._changed.notify_all()

    # The writer.

    async def _write(self) -> None:
        begun_at = 0.0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._events))
                event = self._events.popleft()
                self._changed.notify_all()
            if isinstance(event, Beginning):
                begun_at = await self._write_beginning(event)
            elif isinstance(event, Sound):
                await self._write_sound(event.samples, event.timed, begun_at)
            elif isinstance(event, pb.Flushed):
                await self._send(flushed=event)
                self._unanswered -= 1
            elif isinstance(event, pb.Cancelled):
                await self._send(cancelled=event)
                self._unanswered -= 1
            else:
                break
        if self._packer:
            rest = await self._packer.finish()
            if rest:
                await self._send(chunk=pb.AudioChunk(audio=rest))

    async def _write_beginning(self, beginning: Beginning) -> float:
        """Announce a sentence, behind the silence between it and the one before; say when it begins."""
        speaking = beginning.speaking
        if speaking and self._packer is None:
            self._rate = speaking.sampling_rate
            self._packer = Packer(self._wanted.audio_format, self._rate, self._wanted.sampling_rate)
            await self._send(start=speech_start(speaking, self._wanted, self._packer.sampling_rate))
        elif speaking and self._samples:
            await self._write_sound(np.zeros(round(SENTENCE_PAUSE * self._rate), np.float32), [], 0.0)
        unknown = speaking.unknown if speaking else ()
        sentence = pb.Sentence(text=beginning.text, start_seconds=self._seconds, unknown=unknown)
        await self._send(sentence=sentence)
        return self._seconds

    async def _write_sound(self, samples: Samples, timed: Sequence[TimedLike], begun_at: float) -> None:
        self._samples += len(samples)
        audio = await self._packer.pack(samples) if self._packer else b""
        chunk = pb.AudioChunk(audio=audio, timestamps=timestamps(timed, from_seconds=begun_at))
        if chunk.audio or chunk.timestamps:
            await self._send(chunk=chunk)

    @property
    def _seconds(self) -> float:
        return self._samples / self._rate if self._rate else 0.0

    async def _send(self, **event: Any) -> None:
        await self._call.write(pb.SynthesizeIncrementalResponse(**event))
