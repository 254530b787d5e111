"""Text front ends: what turns a text into the token ids that a model was trained on.

Training, export and synthesis use the same one, so that a voice hears at work what it was taught with.
"""

from shared.text.front_end import FRONT_END_FILE, FrontEnd
from shared.text.tokens import Tokens

__all__ = ["FRONT_END_FILE", "FrontEnd", "Tokens"]
