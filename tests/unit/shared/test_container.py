"""In our images, what is not there has to be mounted, and what may not be written is not the image's user's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shared.container import IMAGE, USER_ID, mount_advice, user_advice
from shared.errors import NotFoundError, StoreError, UserError
from shared.folders import writing
from shared.registry import Registry, default_voice
from shared.store import Store

ROOT = Path(__file__).parents[3]
REMEDY = '--user "$(id -u):$(id -g)"'


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image, as its own user."""
    monkeypatch.setenv(IMAGE, "vits-train")
    monkeypatch.setattr("shared.container.USER_ID", os.getuid())


@pytest.mark.parametrize("kind", ["serve", "train"])
def test_the_images_say_that_they_are_ours_and_whose_they_are(kind: str) -> None:
    text = (ROOT / f"Dockerfile.{kind}").read_text()
    assert re.search(rf"^    {IMAGE}=vits-{kind} \\$", text, re.MULTILINE)
    assert f"\nUSER {USER_ID}:{USER_ID}\n" in text


def test_outside_of_images_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IMAGE, raising=False)
    monkeypatch.setattr("shared.container.USER_ID", os.getuid())
    assert mount_advice("models") == user_advice("Permission denied (os error 13)") == ""


@pytest.mark.usefixtures("image")
def test_advice_is_for_who_is_refused_as_the_user_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEDY in user_advice("Permission denied (os error 13)")
    assert user_advice("No space left on device") == ""
    monkeypatch.setattr("shared.container.USER_ID", os.getuid() + 1)
    assert user_advice("Permission denied (os error 13)") == ""


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("made", [False, True])
def test_an_empty_store_may_not_be_mounted(tmp_path: Path, made: bool) -> None:
    store = tmp_path / "store"
    if made:
        store.mkdir()
    with pytest.raises(NotFoundError, match=rf"mount it at {store}, as with -v .*:{store}\", .*VITS_STORE\."):
        default_voice(Registry(Store.open(str(store))))


@pytest.mark.usefixtures("image")
def test_an_output_that_the_user_of_the_image_may_not_write() -> None:
    with pytest.raises(UserError, match=re.escape(REMEDY)), writing(Path("/output"), "give another"):
        raise PermissionError(13, "Permission denied")


@pytest.mark.usefixtures("image")
def test_a_store_that_the_user_of_the_image_may_not_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    store = Store.open(str(tmp_path))
    monkeypatch.setattr("obstore.put", refused)
    with pytest.raises(StoreError, match=re.escape(REMEDY)):
        store.write("x", b"1")
    monkeypatch.setattr("shared.store.LocalStore", refused)
    with pytest.raises(StoreError, match=re.escape(REMEDY)):
        Store.open(str(tmp_path / "other")).write("x", b"1")
