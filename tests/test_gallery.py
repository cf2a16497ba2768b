"""The gallery: the committed page is what the command writes."""

from running import ROOT

from rewards import gallery


def test_the_committed_gallery_is_what_the_command_writes():
    committed = (ROOT / gallery.PAGE).read_text(encoding="utf-8")
    assert committed == gallery.page(), "python -m rewards.gallery writes it again"
