"""What the server's log looks like: a line for people, or a JSON object a line for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

#: Loggers that are heard, and from which level on; all others from WARNING on.
LEVELS = {"vits": logging.INFO, "bentoml": logging.WARNING, "bentoml.access": logging.INFO}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the event's own details."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        details = getattr(record, "details", None)
        if isinstance(details, dict):
            line |= details
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Escaped: a text may hold a lone surrogate, which no encoder would write.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for people, with the request's name where the event has one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        details = getattr(record, "details", None) or {}
        said = [f"{name} {details[name]}" for name in ("door", "voice", "request_id") if details.get(name)]
        if "text" in details:
            said.append(f"text {details['text']!a}")
        return super().format(record) + (f" ({', '.join(said)})" if said else "")


def configure_logging(form: str) -> None:
    """Log to standard error: ours, BentoML's access log, and everybody's warnings.

    Args:
        form: ``json`` or ``text``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.disabled = False
        logger.propagate = True
        logger.setLevel(level)
