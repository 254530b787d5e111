"""torchrun, but with the exit code of what it has run: ``python -m services.training.launching``.

torchrun itself answers 1 whatever a process has failed of, and whenever it is told to stop. What decides by the exit
code whether to start a run again has to know a mistake that no retry mends (2) from a run that was stopped and is
saved (143).
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> int:
    """Run torchrun with this process's arguments.

    Returns:
        The exit code of the process that failed first, or of the signal, both as a shell gives them; 0 if all is well.
    """
    try:
        torchrun()
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
