"""Ways out: one that fails holds back no other, nothing is left out, and the table has each signal once."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from mdms_pipeline.live import deliver
from mdms_pipeline.live.deliver import (
    TRIES,
    Away,
    Delivery,
    Receiver,
    Refused,
    Standing,
    Table,
    Webhook,
    held_up,
    pause,
    signature,
    subscribe,
    verify,
    webhook,
)
from mdms_pipeline.live.journal import Journal, spoken
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.settings import SettingError, Settings
from mdms_pipeline.show import next_steps
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.signals import signals_after, watches
from mdms_pipeline_tests.live.made import PATIENCE, WATCHED, Heard, bar, signal
from mdms_pipeline_tests.support import NOW, beside, rows

SECRET = "a secret of 24 letters.."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(deliver, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(deliver, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(deliver, "GATHER", 0.01)
    monkeypatch.setattr(deliver, "LOOK", 0.01)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "signals")


@pytest.fixture
def delivery(journal: Journal) -> Iterator[Delivery]:
    with closing(Delivery(journal)) as found:
        yield found


def until(look: Any, wanted: Any = True) -> None:
    """Wait until what is looked at is as wanted."""
    end = time.monotonic() + PATIENCE
    while (found := look()) != wanted:
        assert time.monotonic() < end, found
        threading.Event().wait(0.002)


def standing(delivery: Delivery, name: str) -> Standing:
    return next(one for one in delivery.standings() if one.name == name)


# ---- callables


def test_any_callable_in_one_line(delivery: Delivery) -> None:
    heard = Heard()
    delivery.subscribe(heard)
    made = [signal(i) for i in range(300)]
    assert delivery.emit(made[:200]) == made[:200]
    assert delivery.emit(made[100:]) == made[200:]
    assert heard.wait(300) == made


def test_one_that_raises_and_one_that_hangs_hold_back_no_other(delivery: Delivery) -> None:
    hung, good = threading.Event(), Heard()
    bad = Heard(lambda signal, times: True)
    delivery.subscribe(lambda signal: hung.wait(PATIENCE), name="hung")
    delivery.subscribe(bad, name="bad")
    delivery.subscribe(good, name="good")
    made = [signal(i) for i in range(20)]
    for one in made:
        delivery.emit([one])
    assert good.wait(20) == made
    until(lambda: len(standing(delivery, "bad").aside), 20)
    assert len(bad.tried) == 20 * TRIES
    assert standing(delivery, "bad").error == "RuntimeError not this one"
    assert standing(delivery, "hung").waiting == 20
    hung.set()
    until(lambda: standing(delivery, "hung").waiting, 0)


def test_what_did_not_get_through_is_told_again_after_a_restart(journal: Journal) -> None:
    stubborn = Heard(lambda signal, times: signal.opened_at in (bar(2), bar(5)))
    made = [signal(i) for i in range(8)]
    with closing(Delivery(journal, [Receiver("bot", stubborn)])) as delivery:
        delivery.emit(made)
        assert stubborn.wait(6) == [made[i] for i in (0, 1, 3, 4, 6, 7)]
        until(lambda: [one.id for one in standing(delivery, "bot").aside], [made[2].id, made[5].id])
    better = Heard(lambda signal, times: signal.opened_at == bar(5))
    with closing(Delivery(Journal(journal.folder), [Receiver("bot", better)])) as delivery:
        delivery.emit([signal(8)])
        assert better.wait(2) == [made[2], signal(8)]
        assert [one.id for one in standing(delivery, "bot").aside] == [made[5].id]
    last = Heard()
    with closing(Delivery(Journal(journal.folder), [Receiver("bot", last)])) as delivery:
        assert last.wait(1) == [made[5]]
        until(lambda: standing(delivery, "bot").aside, ())
        assert standing(delivery, "bot").dropped == 0


def test_what_is_held_up_is_written_down_for_others_to_see(journal: Journal) -> None:
    with closing(
        Delivery(journal, [Receiver("bad", Heard(lambda signal, times: signal.opened_at == bar(1))), Receiver("good", Heard())])
    ) as delivery:
        delivery.emit([signal(i) for i in range(3)])
        until(lambda: held_up(journal.folder), {"bad": "1 refused"})
    away = Server(*[httpx.Response(503)] * 10_000).hook()
    with closing(Delivery(journal, [Receiver("hook", away)])):
        until(lambda: ": answered 503" in held_up(journal.folder).get("hook", ""))


def test_a_name_goes_on_where_it_was_and_another_begins_with_the_oldest(journal: Journal) -> None:
    first = Heard()
    with closing(Delivery(journal, [Receiver("bot", first)])) as delivery:
        delivery.emit([signal(0), signal(1)])
        first.wait(2)
    journal.append([signal(2)])  # nobody listens
    again, new, nameless = Heard(), Heard(), Heard()
    with closing(Delivery(Journal(journal.folder), [Receiver("bot", again), Receiver("new", new)])) as delivery:
        delivery.subscribe(nameless)
        delivery.emit([signal(3)])
        assert again.wait(2) == [signal(2), signal(3)]
        assert new.wait(4) == [signal(i) for i in range(4)]
        assert nameless.wait(1) == [signal(3)]


def test_a_name_is_taken_once(delivery: Delivery) -> None:
    delivery.subscribe(print, name="bot")
    with pytest.raises(ValueError, match="name 'bot' is taken"):
        delivery.subscribe(print, name="bot")


def test_of_two_processes_one_tells_and_the_other_takes_over(journal: Journal) -> None:
    """Two deliveries stand for two processes: the lock does not tell them apart."""
    one, other = Heard(), Heard()
    first, second = Delivery(journal, [Receiver("hook", one)]), None
    try:
        first.emit([signal(0)])
        one.wait(1)
        second = Delivery(Journal(journal.folder), [Receiver("hook", other)])
        second.emit([signal(1)])
        assert one.wait(2) == [signal(0), signal(1)]  # though another process wrote it
        until(lambda: standing(second, "hook").error, "another process tells it")
        first.close()
        second.emit([signal(2)])
        assert other.wait(1) == [signal(2)]
    finally:
        first.close()
        if second:
            second.close()


def tell_elsewhere(ready: Any, folder: Path, signals: int) -> None:
    journal = Journal(folder)
    ready.set()
    for i in range(signals):
        journal.append([signal(i)])


def test_a_callable_hears_what_another_process_tells(home: Path) -> None:
    heard, given = Heard(), Settings.load({"MDMS_HOME": str(home)})
    following = subscribe(heard, settings=given)
    with beside(tell_elsewhere, given.signals, 40):
        assert heard.wait(40) == [signal(i) for i in range(40)]
    following.end()
    following.join(PATIENCE)
    assert not following.is_alive()


def test_what_the_journal_has_forgotten_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "signals", segment=2_000, bound=4_000)
    stuck, heard = threading.Event(), Heard()
    with closing(Delivery(journal, [Receiver("slow", lambda signal: (heard(signal), stuck.wait(PATIENCE)))])) as delivery:
        delivery.emit([signal(0)])
        heard.wait(1)
        for i in range(1, 60):
            delivery.emit([signal(i)])
            journal.release(journal.end)
        kept = journal.count() - journal.count(journal.start)
        assert kept < 60
        stuck.set()
        until(lambda: standing(delivery, "slow").waiting, 0)
        now = standing(delivery, "slow")
        assert now.sent + now.dropped == 60
        assert now.dropped == 60 - kept - 1  # the first was taken


def test_provisional_signals_are_handed_on_and_never_written(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "MOST_PROVISIONAL", 50)
    slow, quick, release = Heard(), Heard(), threading.Event()
    with closing(Delivery(journal)) as delivery:
        delivery.subscribe(lambda signal: (release.wait(PATIENCE), slow(signal)), name="slow")
        delivery.subscribe(quick, name="quick")
        maybe = [signal(i, provisional=True) for i in range(100)]
        assert delivery.emit([signal(0)]) == [signal(0)]
        quick.wait(1)
        for one in maybe:
            assert delivery.emit([one, one.__class__(**{**one.__dict__, "provisional": False})])[0] is one
        release.set()
        until(lambda: standing(delivery, "slow").waiting, 0)
    assert [one.provisional for one in slow.signals].count(True) + standing(delivery, "slow").missed == len(maybe)
    assert standing(delivery, "slow").missed > 0
    assert all(entry.signal is None or not entry.signal.provisional for entry in journal.after(journal.start, 10_000))


def test_a_full_disk_holds_back_nobody(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, write = Heard(), os.write

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with closing(Delivery(journal)) as delivery:
        delivery.subscribe(heard)
        monkeypatch.setattr(os, "write", full)
        delivery.emit([signal(0)])
        assert heard.wait(1) == [signal(0)]
        monkeypatch.setattr(os, "write", write)
        delivery.emit([signal(1)])
        assert {one.id for one in heard.wait(3)} == {signal(0).id, signal(1).id}  # the first again: at least once


def test_too_many_that_are_put_aside_are_counted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "MOST_ASIDE", 5)
    monkeypatch.setattr(deliver, "TRIES", 1)
    with closing(Delivery(journal, [Receiver("bad", Heard(lambda signal, times: True))])) as delivery:
        delivery.emit([signal(i) for i in range(12)])
        until(lambda: standing(delivery, "bad").dropped, 7)
        assert [one.id for one in standing(delivery, "bad").aside] == [signal(i).id for i in range(7, 12)]


# ---- webhooks


class Server:
    """Answers as it is told to, and remembers what came."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if self._answers else httpx.Response(204)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hook(self) -> Webhook:
        return Webhook("http://receiver/in?key=x", SECRET, httpx.MockTransport(self))


def test_a_webhook_is_json_signed_with_its_id() -> None:
    server = Server()
    made = signal(3, values={"거래대금": 1e9})
    server.hook()(made)
    (request,) = server.requests
    assert json.loads(request.content) == json.loads(json.dumps(spoken(made)))
    assert request.headers["Idempotency-Key"] == made.id
    header = request.headers[deliver.SIGNATURE]
    assert verify(SECRET, header, request.content, time.time())
    assert not verify("another secret.........", header, request.content, time.time())
    assert not verify(SECRET, header, request.content + b" ", time.time())
    assert not verify(SECRET, header, request.content, time.time() + 301)
    assert not verify(SECRET, "", request.content, time.time())
    assert not verify(SECRET, "t=,v1=거", request.content, time.time())


def test_the_signature_is_the_usual_one() -> None:
    """As `printf '1795000000.{}' | openssl dgst -sha256 -hmac 'a secret of 24 letters..'` gives it."""
    assert signature(SECRET, b"{}", 1795000000) == "t=1795000000,v1=717a5dd7360809a0765c179ac7a0aa1009e1f015fb5687940b4b19db23f978fd"


def test_provisional_ones_have_keys_of_their_own() -> None:
    server = Server()
    for at in (1.0, 2.0):
        server.hook()(signal(provisional=True, emitted_at=at))
    server.hook()(signal())
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 3


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
def test_answers_that_refuse_the_signal(status: int) -> None:
    with pytest.raises(Refused, match=str(status)):
        Server(httpx.Response(status)).hook()(signal())


@pytest.mark.parametrize("answer", [httpx.Response(code) for code in (301, 401, 404, 408, 429, 500, 503)] + [httpx.ConnectError("no")])
def test_answers_that_are_about_the_way_there(answer: httpx.Response | Exception) -> None:
    with pytest.raises(Away):
        Server(answer).hook()(signal())


def test_a_server_says_how_long_to_wait() -> None:
    with pytest.raises(Away) as caught:
        Server(httpx.Response(503, headers={"Retry-After": "7"})).hook()(signal())
    assert caught.value.pause == 7


def test_a_server_that_is_down_gets_everything_in_order_when_it_is_back(journal: Journal) -> None:
    server = Server(*[httpx.ConnectError("refused")] * (3 * TRIES), httpx.Response(503), httpx.Response(429))
    with closing(Delivery(journal, [Receiver("hook", server.hook())])) as delivery:
        delivery.emit([signal(i) for i in range(10)])
        until(lambda: standing(delivery, "hook").sent, 10)
        until(lambda: held_up(journal.folder), {})
        keys = [request.headers["Idempotency-Key"] for request in server.requests]
        assert list(dict.fromkeys(keys)) == [signal(i).id for i in range(10)]
        assert keys.count(signal(0).id) == 3 * TRIES + 3
        assert standing(delivery, "hook").error is None


def test_pauses_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [pause(n) for n in range(4)] == [0.0, 0.5, 1.0, 2.0]
    assert pause(5_000) == 60.0


def test_no_name_shows_an_address_or_a_secret() -> None:
    settings = Settings.load({"MDMS_SIGNAL_URL": "http://a/x?key=k1 https://b/y", "MDMS_SIGNAL_SECRET": SECRET})
    receivers = [webhook(url, settings.signal_secret) for url in settings.signal_urls]
    assert [one.name.split()[:2] for one in receivers] == [["webhook", "a"], ["webhook", "b"]]
    assert SECRET not in repr(settings)


def test_no_hint_shows_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMS_SIGNAL_SECRET", SECRET)
    monkeypatch.setenv("MDMS_HISTORY", "77")
    said = next_steps(Settings.load({}), "mine")
    assert "MDMS_HISTORY=77" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MDMS_SIGNAL_URL": "http://a"}, "only sent signed"),
        ({"MDMS_SIGNAL_URL": "http://a", "MDMS_SIGNAL_SECRET": "short"}, "has 5 characters"),
        ({"MDMS_SIGNAL_URL": "a.com", "MDMS_SIGNAL_SECRET": SECRET}, r"MDMS_SIGNAL_URL='a.com': must be an http\(s\) address"),
        ({"MDMS_SIGNAL_SYNC": "maybe"}, "must be one of no, yes"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        Settings.load(given)
    assert "'short'" not in str(caught.value)


# ---- the table


def in_table(warehouse: Warehouse) -> list[Signal]:
    with warehouse.read() as connection:
        return [Signal(**{name: getattr(one, name) for name in Signal.__dataclass_fields__ if name != "provisional"}, provisional=False)
                for one in signals_after(connection, limit=100_000)]  # fmt: skip


def tabled(journal: Journal, warehouse: Warehouse) -> Delivery:
    return Delivery(journal, (), Table(journal, warehouse, lambda: NOW))


def test_the_table_gets_every_signal_with_one_event_for_a_burst(journal: Journal, warehouse: Warehouse) -> None:
    made = [signal(i) for i in range(500)]
    with closing(tabled(journal, warehouse)) as delivery:
        delivery.watch([WATCHED])
        delivery.emit([*made, signal(0, provisional=True)], reached={"w1": bar(499)})
        until(lambda: standing(delivery, "table").sent, 500)
    assert in_table(warehouse) == made
    assert len(rows(warehouse, "SELECT id FROM events")) <= 2
    with warehouse.read() as connection:
        assert watches(connection) == [WATCHED.__class__(**{**WATCHED.__dict__, "until": bar(499)})]


def test_a_busy_warehouse_holds_back_nothing_and_gets_all_once_it_is_free(journal: Journal, warehouse: Warehouse) -> None:
    heard = Heard()
    impatient = Warehouse(warehouse.path, "sandbox", deadline=0.01)
    with warehouse.path.with_suffix(".lock").open("r+") as lock, closing(tabled(journal, impatient)) as delivery:
        fcntl.flock(lock, fcntl.LOCK_EX)
        delivery.subscribe(heard)
        for i in range(30):
            delivery.emit([signal(i)])
        assert len(heard.wait(30)) == 30
        until(lambda: "was busy" in str(standing(delivery, "table").error))
        assert standing(delivery, "table").waiting == 30
        fcntl.flock(lock, fcntl.LOCK_UN)
        until(lambda: standing(delivery, "table").waiting, 0)
        assert standing(delivery, "table").error is None
    assert in_table(warehouse) == [signal(i) for i in range(30)]


def test_what_was_left_is_brought_by_the_next_life_and_a_restored_warehouse_gets_it_again(journal: Journal, warehouse: Warehouse) -> None:
    journal.append([signal(0), signal(1)], watched=[WATCHED])
    with closing(tabled(journal, warehouse)) as delivery:
        until(lambda: standing(delivery, "table").waiting, 0)
    older = warehouse.path.read_bytes()
    journal.append([signal(2)], reached={"w1": bar(2)})
    for _ in range(2):
        with closing(tabled(Journal(journal.folder), warehouse)):
            pass  # closing delivers what there is
        assert in_table(warehouse) == [signal(i) for i in range(3)]
        with warehouse.read() as connection:
            assert [one.until for one in watches(connection)] == [bar(2)]
        warehouse.path.write_bytes(older)


def test_a_stretch_that_goes_on_stays_one(journal: Journal, warehouse: Warehouse) -> None:
    def live(since: int, until: int, **changes: Any) -> None:
        with closing(tabled(Journal(journal.folder), warehouse)) as delivery:
            delivery.watch([WATCHED.__class__(**{**WATCHED.__dict__, "since": bar(since), **changes})])
            assert delivery.reached("w1") != bar(until)
            delivery.emit([], reached={"w1": bar(until)})

    live(0, 3)
    live(4, 6)  # right after it
    live(5, 8)  # within it
    live(10, 12)  # a bar is missing
    live(13, 14, symbols=("KRW-XRP",))
    with warehouse.read() as connection:
        assert [(one.since, one.until, one.symbols) for one in watches(connection)] == [
            (bar(0), bar(8), WATCHED.symbols), (bar(10), bar(12), WATCHED.symbols), (bar(13), bar(14), ("KRW-XRP",)),
        ]  # fmt: skip
