"""espeak-ng in a process of its own, for a server whose texts are anybody's.

espeak-ng is C, reads what strangers wrote, and has killed the process that read some of it (`espeak.survivable`
guards against what is known). In a child it takes nobody with it: the child is started again, and only the text
that killed it is refused. A call costs 0.05 ms more.

`main` is the child, which is asked on its standard input and answers on its standard output.
"""

from __future__ import annotations

import math
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
from typing import IO, Any

from shared.errors import EngineError, TextError

#: A text that takes more of the child's processor time has sent espeak-ng round in circles: the longest take 0.1 s.
#: A clock on the wall would not tell that from a machine on which others take all of the processor, where each
#: text would be refused after it. The system counts, and ends the child (SIGXCPU) wherever it may be.
PROCESSOR_SECONDS = 5.0
#: Only a child that neither answers nor computes, which none has been seen to do, is told by the clock on the wall. A
#: starved machine is slow as well, so it is given minutes.
PATIENCE_SECONDS = 300.0
#: The child loads the library first.
START_SECONDS = 300.0

#: What the child runs.
CHILD = f"from {__name__} import main; main()"

_LENGTH = struct.Struct("<I")


class EspeakProcess:
    """Reads texts in a child, which is started when it is first needed and ends with this process.

    Not safe to use from several threads at once: `espeak` has a lock for its library anyway.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, function: str, *arguments: object) -> Any:
        """What a function of `espeak.IN_PROCESS` returns, or raises.

        Raises:
            TextError: espeak-ng does not survive the text.
            EngineError: The child cannot be started.
        """
        # A child may have died of something else, so there is a second chance.
        for _ in range(2):
            child = self._start()
            try:
                ok, answer = _ask(child, (function, arguments), patience=PATIENCE_SECONDS)
            except (OSError, EOFError) as error:
                self.close()
                if isinstance(error, TimeoutError) or child.returncode == -signal.SIGXCPU:
                    # Everybody else waits meanwhile: once is enough.
                    break
                continue
            except BaseException:
                # What it still answers would be taken for the next text's.
                self.close()
                raise
            if ok:
                return answer
            raise answer
        raise TextError(
            "The text cannot be spoken: espeak-ng, which reads it, fails on it. Change or shorten it."
        )

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child:
            return self._child
        try:
            # In a session of its own, so that Ctrl-C reaches the server alone.
            self._child = child = subprocess.Popen(  # noqa: S603 (ourselves)
                [sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            _ask(child, ("", ()), patience=START_SECONDS)
        except (OSError, EOFError) as error:
            # One that answers late would answer the next text with what it owes to this one.
            self.close()
            raise EngineError(
                "espeak-ng, which reads the texts, could not be started in a process of its own "
                f"({str(error) or type(error).__name__}); the server's log may say more"
            ) from error
        return child

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child:
            child.kill()
            child.communicate()


def _ask(child: subprocess.Popen[bytes], question: Any, *, patience: float) -> Any:
    """Ask a child.

    Raises:
        OSError: It is gone, or does not answer.
        EOFError: It went while it was asked.
    """
    assert child.stdin is not None  # noqa: S101 (both are pipes)
    assert child.stdout is not None  # noqa: S101
    _send(child.stdin, question)
    if not select.select([child.stdout], [], [], patience)[0]:
        raise TimeoutError
    return _receive(child.stdout)


def _send(stream: IO[bytes], message: Any) -> None:
    content = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    # What comes is from our own child or parent, over a pipe that nobody else holds.
    return pickle.loads(content)  # noqa: S301


def _allow(seconds: float) -> None:
    """Let this process compute for so long from now on, rounded up, and end it then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(
        resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most)
    )


def main() -> None:
    """Answer questions until nobody asks any more."""
    from shared.text.espeak import IN_PROCESS

    # What strangers wrote is not left lying about in a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            function, arguments = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _allow(PROCESSOR_SECONDS)
        try:
            answer = (True, IN_PROCESS[function](*arguments) if function else None)
        except Exception as error:  # whatever it is, the parent raises it
            answer = (False, error)
        _send(sys.stdout.buffer, answer)
