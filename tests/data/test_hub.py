import threading

import pytest

from sentence_distill.data.hub import HubUnreachable, ask_hub


@pytest.fixture
def _online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.mark.usefixtures("_online")
def test_an_answer_is_passed_on():
    assert ask_hub(lambda: 42) == 42


@pytest.mark.usefixtures("_online")
def test_a_network_that_never_answers_is_given_up_at_the_deadline():
    never = threading.Event()
    with pytest.raises(HubUnreachable, match="no answer"):
        ask_hub(never.wait, deadline_s=0.1)


@pytest.mark.usefixtures("_online")
def test_the_client_s_error_is_the_reason():
    def fail():
        raise OSError("Name or service not known\nmore")

    with pytest.raises(HubUnreachable, match=r"^Name or service not known$"):
        ask_hub(fail)


def test_a_user_who_switched_the_hub_off_is_not_asked_to_wait():
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        ask_hub(lambda: pytest.fail("the hub was asked"))
