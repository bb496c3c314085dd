"""docs/reference/messages.md lists the messages that the code raises."""

from tests import messages


def test_page_of_messages_is_up_to_date() -> None:
    assert messages.PAGE.read_text(encoding="utf-8") == messages.page(), "update it with: python -m tests.messages"
