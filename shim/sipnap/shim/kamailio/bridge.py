"""Between one Kamailio and one session with the sidecar: suspensions, tasks and CANCELs in, continues out, the gate.

One UDP socket, connected to the proxy's NAP socket, so that the kernel drops what comes from anywhere else. Per nap
there is one object (`Nap`), which the session keeps too, and which is referred to: no task, no future, no timer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from sipnap.client.early import next_turn
from sipnap.client.keys import Key, fill_key
from sipnap.client.outstanding import Suspended
from sipnap.client.request_head import RequestHeadError, RequestName, head_of, read_head
from sipnap.client.session import FrontEndSession
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.shim.kamailio.inbox import Address, Inbox, open_socket
from sipnap.shim.kamailio.nap import Nap, nap_without_state
from sipnap.v1 import suspension_pb2 as pb

HEARTBEAT_SECONDS = 1.0
"""How often the proxy is told how the gate stands; it believes an open one for 3 s."""

RESEND_SECONDS = (0.25, 0.5, 1.0, 2.0, 2.0)
"""How long each sending of a NAP request is waited for (RFC 3261 17.1.2.1: doubling); after the last it is given up."""

PROXY_LOST_SECONDS = 3.0
"""A proxy that answers no heartbeat for so long is reported as lost."""

EARLY_CANCEL_SECONDS = 2.0
"""A CANCEL may overtake the suspension that it means, since different workers of the proxy send them."""

_MOST_EARLY_CANCELS = 10_000
_MOST_OF_ONE_CALL = 64
_LARGEST_BATCH = 32  # naps that one request may end, whatever the script takes: Kamailio's loops have 100 rounds
_SWEEP_SECONDS = 0.05
_QUIET_POLLS = 5  # in a row without a datagram: wait for the next one as one waits for a rare thing
_REPORT_SECONDS = 10.0
_DATAGRAMS_PER_TURN = 256  # then the loop gets its turn: continues and heartbeats must not wait for a burst to end

_OK = 200
_NOT_FOUND = 481  # RFC 3261 21.4.19
_HEARTBEAT = re.compile(rb"(?:open|closed|ask)\.[0-9]+(?:\.([0-9]{1,4}))?\Z")
_OUTCOMES: dict[int, pb.ContinueOutcome] = {
    _OK: pb.CONTINUE_OUTCOME_APPLIED,
    404: pb.CONTINUE_OUTCOME_REJECTED,
    _NOT_FOUND: pb.CONTINUE_OUTCOME_GONE,
}

log = logging.getLogger("sipnap.shim.kamailio")


class _Request:
    """A NAP request that the proxy has not answered yet."""

    __slots__ = ("content", "naps", "user")

    def __init__(self, user: bytes, naps: Sequence[Nap], content: bytes | None = None) -> None:
        self.user = user
        self.naps = naps
        # None: a plain one. After a batch each of its naps is asked for alone.
        self.content = content


class Bridge:
    """Carries everything between a proxy and a session. Belongs to one event loop."""

    def __init__(
        self,
        session: FrontEndSession,
        *,
        front_end_id: str,
        listen: Address,
        proxy: Address,
        ship_raw_request: bool = False,
    ) -> None:
        """Bind the socket.

        Args:
            session: The session, made without a boot epoch: the bridge sets it when the proxy has said it.
            front_end_id: Name that the session has told the sidecar.
            listen: Where the proxy sends to (sipnap.cfg: ``SIPNAP_SHIM_PORT``).
            proxy: The proxy's NAP socket (sipnap.cfg: ``SIPNAP_PORT``).
            ship_raw_request: Whether to send each SIP request along as a whole.

        Raises:
            OSError: The address cannot be bound.
        """
        self._session = session
        self._front_end_id = front_end_id
        self._proxy = proxy
        self._ship_raw_request = ship_raw_request
        self._socket = open_socket(listen, proxy)
        self._inbox = Inbox(self._socket)
        self._boot_epoch: int | None = None
        self._closing = False

        # For CANCELs. Nearly always one Call-ID has one nap; a dictionary of them, in order, if it has more.
        self._by_call_id: dict[bytes, Nap | dict[Nap, None]] = {}
        self._early_cancels: dict[RequestName, float] = {}
        # What is being ended, but the session does not keep: it is not of this shim's life, or could not be read.
        self._strangers: dict[Key, Nap] = {}
        self._awaiting: dict[bytes, _Request] = {}  # by the user part that the proxy's answer repeats
        # One queue for each sending: all in it wait equally long, so each is in order of time.
        self._waiting: list[deque[tuple[float, _Request]]] = [deque() for _ in RESEND_SECONDS]

        # How many naps the proxy's script ends at one request: its answers to heartbeats say it.
        self._most_in_batch = 1
        self._heartbeats = 0
        self._was_open = False
        self._proxy_answered_seconds: float | None = None
        self._proxy_is_lost = False
        self._malformed = 0
        self._malformed_why = ""

    @property
    def unanswered(self) -> int:
        """Naps and tasks whose end the proxy was told, and has not answered for yet."""
        return len({nap for request in self._awaiting.values() for nap in request.naps if nap.sendings})

    @property
    def early_cancels(self) -> int:
        """CANCELs that are remembered because no suspension was known for them."""
        return len(self._early_cancels)

    async def run(self) -> None:
        """Carry until cancelled; then shut the gate, and give the proxy a moment to answer for what it was sent."""
        loop = self._loop = asyncio.get_running_loop()
        self._proxy_asked_seconds = loop.time()
        loop.add_reader(self._socket, self._wake_up)
        self._session.on_gate(self._gate_changed)
        self._session.on_continues(self._send_continues)
        self._session.on_due(self._send_due)
        self._send_heartbeat()
        try:
            await self._keep_time()
        finally:
            self._closing = True
            self._send_heartbeat()
            last = loop.time() + sum(RESEND_SECONDS[:2])
            while self.unanswered and loop.time() < last:
                await asyncio.sleep(_SWEEP_SECONDS)
                self._resend(loop.time())
            loop.remove_reader(self._socket)
            self._socket.close()

    # From the proxy

    def _wake_up(self) -> None:
        """The first datagram after a pause. From now on time wakes us: a turn of the loop for each one costs more."""
        self._loop.remove_reader(self._socket)
        self._poll(0)

    def _poll(self, quiet: int) -> None:
        if self._socket.fileno() < 0:
            return
        has_come = True
        try:
            has_come = self._read_some()
        finally:  # whatever one datagram did, the next one counts
            quiet = 0 if has_come else quiet + 1
            if quiet < _QUIET_POLLS:
                self._loop.call_at(next_turn(self._loop.time()), self._poll, quiet)
            else:
                self._loop.add_reader(self._socket, self._wake_up)

    def _read_some(self) -> bool:
        """Carry out what has come; False: nothing has."""
        taken = self._inbox.take(_DATAGRAMS_PER_TURN)
        read, front_end_id, ship_raw_request = datagram.read, self._front_end_id, self._ship_raw_request
        for each, lain_seconds in taken:
            try:
                message = read(each, front_end_id=front_end_id, ship_raw_request=ship_raw_request)
                if type(message) is Nap:
                    message.delay_seconds -= lain_seconds
                    self._suspend(message)
                elif type(message) is datagram.Answers:
                    self._batch_answered(message)
                elif type(message) is datagram.Answer:
                    self._answered(message)
                elif type(message) is datagram.Task:
                    self._take_task(message)
                elif type(message) is datagram.Cancel and self._is_present(message.boot_epoch):
                    self._cancel(message.request)
            except datagram.UnreadableRequest as error:
                self._resume_unreadable(error)
            except datagram.DatagramError as error:
                self._malformed += 1
                self._malformed_why = str(error)
        return bool(taken)

    def _suspend(self, nap: Nap) -> None:
        _, boot_epoch, _, _, nap_number = key = nap.key
        if boot_epoch != self._boot_epoch and not self._is_present(boot_epoch):
            return
        if nap_number > 1:
            # It naps again, so its earlier nap was resumed, whether or not the proxy's answer has reached us yet.
            earlier = self._find((*key[:4], nap_number - 1))
            if earlier is not None and earlier.sendings:
                self._settle(earlier, pb.CONTINUE_OUTCOME_APPLIED)
        if self._early_cancels and _name_of(nap) in self._early_cancels:
            return
        if self._session.submit(nap, is_urgent=nap.has_operations) and (call_id := nap.call_id):
            same = self._by_call_id.setdefault(call_id, nap)
            if type(same) is dict:
                same[nap] = None
            elif same is not nap:
                self._by_call_id[call_id] = {cast(Nap, same): None, nap: None}

    def _take_task(self, message: datagram.Task) -> None:
        boot_epoch, suspension, delay_ms = message
        if self._is_present(boot_epoch):
            number = secrets.randbits(64)  # new in this life of the proxy, whoever else makes tasks for it
            key = (self._front_end_id, boot_epoch, number >> 32, number & 0xFFFFFFFF, 0)
            fill_key(suspension.key, key[1:])
            task = nap_without_state(key, suspension.resume_route)
            task.encoded, task.delay_seconds = suspension.SerializeToString(), delay_ms * 1e-3
            self._session.submit(task, is_urgent=bool(suspension.operations))

    def _cancel(self, request: RequestName) -> None:
        # Many naps of one Call-ID are nobody's honest call: the rest of them end when their time comes.
        same = self._by_call_id.get(request.call_id, ())
        for nap in (same,) if isinstance(same, Nap) else list(itertools.islice(same, _MOST_OF_ONE_CALL)):
            if _name_of(nap) == request:
                self._forget(nap)
                self._session.cancel(nap.key)
                return
        self._early_cancels[request] = self._loop.time() + EARLY_CANCEL_SECONDS
        if len(self._early_cancels) > _MOST_EARLY_CANCELS:
            del self._early_cancels[next(iter(self._early_cancels))]

    def _find(self, key: Key) -> Nap | None:
        """A nap that has not ended yet; None: the session does not know of it, and neither do we."""
        found = self._session.find(key)
        return found if isinstance(found, Nap) else self._strangers.get(key)

    def _forget(self, nap: Nap) -> None:
        """No CANCEL means it any more."""
        same = self._by_call_id.pop(nap.call_id, None)
        if type(same) is dict:
            same.pop(nap, None)
        if same and same is not nap:
            self._by_call_id[nap.call_id] = same

    def _answered(self, answer: datagram.Answer) -> None:
        self._proxy_answered_seconds = self._loop.time()
        boot_epoch, result, user = answer
        if not self._is_present(boot_epoch):
            return
        request = self._awaiting.get(user)
        if request is not None and len(request.naps) == 1:
            (nap,) = request.naps
            self._ended(nap, result)
            if not nap.sendings:
                del self._awaiting[user]
            return
        if (heartbeat := _HEARTBEAT.match(user)) is not None:
            # A script that does not know batches repeats the user part as it is.
            self._most_in_batch = max(1, min(int(heartbeat[1] or 1), _LARGEST_BATCH))
        if self._proxy_is_lost:
            self._proxy_is_back()

    def _batch_answered(self, answers: datagram.Answers) -> None:
        self._proxy_answered_seconds = self._loop.time()
        boot_epoch, results, user = answers
        if not self._is_present(boot_epoch):
            return
        request = self._awaiting.pop(user, None)
        if request is None:
            return
        if results.count(_OK) == len(results):
            self._resumed([nap for nap in request.naps if nap.sendings])
        else:
            for nap, result in zip(request.naps, results, strict=True):
                self._ended(nap, result)

    def _ended(self, nap: Nap, result: int) -> None:
        if not nap.sendings:
            return  # a part of a batch that was sent again and answered for, or whose transaction naps again
        if result == _NOT_FOUND and nap.sendings > 1:
            # A repetition finds nothing because another worker of the proxy is at the first one still, whose answer
            # is the one that counts.
            nap.not_found += 1
            if nap.not_found < nap.sendings:
                return
        self._settle(nap, _OUTCOMES.get(result, pb.CONTINUE_OUTCOME_GONE))

    def _resume_unreadable(self, error: datagram.UnreadableRequest) -> None:
        self._malformed += 1
        self._malformed_why = str(error)
        nap = error.nap
        if self._is_present(nap.key[1]):
            self._strangers[nap.key] = nap
            text = f"the shim cannot read it: {error}"
            name = nap_request.nap_name(nap.key)
            self._send_alone(
                nap,
                nap_request.continue_request(name, pb.CONTINUE_STATUS_FAILED, error=text, error_code=error.code),
            )

    def _is_present(self, boot_epoch: int) -> bool:
        """Whether a datagram is of the proxy's present life; a greater epoch starts a new one."""
        known = self._boot_epoch
        if boot_epoch == known:
            return True
        if known is not None and boot_epoch < known:
            return False
        if known is None:
            log.info("proxy found address=%s boot_epoch=%d", self._proxy, boot_epoch)
        else:
            log.warning(
                "proxy restarted address=%s boot_epoch=%d forgotten=%d",
                self._proxy,
                boot_epoch,
                self._session.outstanding,
            )
        self._boot_epoch = boot_epoch
        self._most_in_batch = 1
        self._by_call_id.clear()
        self._early_cancels.clear()
        self._strangers.clear()
        self._awaiting.clear()
        for queue in self._waiting:
            queue.clear()
        self._session.set_boot_epoch(boot_epoch)
        return True

    # To the proxy

    def _send_due(self, due: Sequence[Suspended]) -> None:
        self._send_plain(cast(Sequence[Nap], due))  # nobody else submits any to this session

    def _send_continues(self, continues: Sequence[tuple[Key, pb.Continue]]) -> None:
        plain: list[Nap] = []
        for key, order in continues:
            if key[1] != self._boot_epoch:
                self._session.answer(key, pb.CONTINUE_OUTCOME_GONE)
                continue
            nap = self._find(key)
            if nap is None:
                nap = self._strangers[key] = nap_without_state(key)
            route = order.resume_route if order.resume_route != nap.route else None  # which the proxy knows
            if order.status != pb.CONTINUE_STATUS_OK or order.values or not key[4]:
                self._send_alone(nap, nap_request.full_request(nap_request.nap_name(key), order, route=route))
            elif route is not None:
                name = nap_request.nap_name(key)
                self._send_alone(nap, nap_request.continue_request(name, order.status, route=route))
            else:
                plain.append(nap)
        self._send_plain(plain)

    def _send_plain(self, naps: Sequence[Nap]) -> None:
        """What ends as it was asked for goes together: a datagram here and there, and in the proxy, costs more."""
        until = self._loop.time() + RESEND_SECONDS[0]
        most = self._most_in_batch
        for start in range(0, len(naps), most):
            part = naps[start : start + most]
            for nap in part:
                nap.sendings = 1
            user = nap_request.plain_user([nap.key for nap in part])
            request = self._awaiting[user] = _Request(user, part)
            self._waiting[0].append((until, request))
            self._send(nap_request.plain_request(user))

    def _send_alone(self, nap: Nap, content: bytes) -> None:
        nap.sendings = 1
        request = _Request(nap_request.user_of(content), (nap,), content)
        self._awaiting[request.user] = request
        self._waiting[0].append((self._loop.time() + RESEND_SECONDS[0], request))
        self._send(content)

    def _resumed(self, naps: Sequence[Nap]) -> None:
        """The proxy has answered for these: tell the session, and forget them."""
        self._session.applied(naps)
        forget = self._by_call_id.pop
        for nap in naps:
            nap.sendings = 0
            same = forget(nap.call_id, None)
            if same is not nap and same is not None:  # or others of its Call-ID are
                self._by_call_id[nap.call_id] = same
                self._forget(nap)
        if self._strangers:
            for nap in naps:
                self._strangers.pop(nap.key, None)

    def _settle(self, nap: Nap, outcome: pb.ContinueOutcome) -> None:
        """The proxy has answered for a nap, or never will: tell the session, and forget it."""
        if outcome == pb.CONTINUE_OUTCOME_APPLIED:
            self._resumed((nap,))
            return
        nap.sendings = 0
        self._forget(nap)
        self._strangers.pop(nap.key, None)
        self._session.answer(nap.key, outcome)

    def _send(self, request: bytes) -> None:
        with suppress(OSError):  # full, or nobody there: it is sent again, or the next heartbeat follows
            self._socket.send(request)

    def _send_heartbeat(self) -> None:
        self._heartbeats += 1
        # A shim that was just started must not shut a gate that the one before it held open: if no sidecar comes, the
        # gate shuts by itself.
        is_open = None if not self._was_open and not self._closing else self._session.is_open and not self._closing
        self._send(nap_request.gate_request(self._heartbeats, is_open=is_open))

    def _gate_changed(self, is_open: bool) -> None:
        if is_open:
            self._was_open = True
            log.info("gate open: requests may nap")
        else:
            log.warning("gate shut: requests go on without a nap outstanding=%d", self._session.outstanding)
        self._send_heartbeat()

    # Time

    async def _keep_time(self) -> None:
        now = next_heartbeat = next_report = self._loop.time()
        while True:
            asked_seconds = now
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self._loop.time()
            if now - asked_seconds > HEARTBEAT_SECONDS:
                self._proxy_asked_seconds = now  # this process was stopped: that is no silence of the proxy's
            self._resend(now)
            if now >= next_heartbeat:
                next_heartbeat = now + HEARTBEAT_SECONDS
                self._send_heartbeat()
                self._watch_proxy(now)
                self._forget_early_cancels(now)
            if now >= next_report and self._malformed:
                next_report = now + _REPORT_SECONDS
                log.warning("malformed datagrams from the proxy count=%d last=%s", self._malformed, self._malformed_why)
                self._malformed = 0

    def _resend(self, now: float) -> None:
        for sendings, queue in enumerate(self._waiting, start=1):
            while queue and queue[0][0] <= now:
                _, request = queue.popleft()
                if sendings == len(RESEND_SECONDS):
                    self._give_up(request)
                else:
                    self._send_again(request, sendings, now + RESEND_SECONDS[sendings])

    def _send_again(self, request: _Request, sendings: int, until: float) -> None:
        left = [nap for nap in request.naps if nap.sendings]
        if not left or (len(request.naps) == 1 and left[0].not_found):
            self._give_up(request)
            return
        waiting = self._waiting[sendings]
        again = [request]
        if len(request.naps) > 1:
            waiting.append((until, request))  # its own answer may come late
            again = [_Request(nap_request.plain_user((nap.key,)), (nap,)) for nap in left] if sendings == 1 else []
        for each in again:
            each.naps[0].sendings += 1
            self._awaiting[each.user] = each
            waiting.append((until, each))
            self._send(each.content or nap_request.plain_request(each.user))

    def _give_up(self, request: _Request) -> None:
        """Nothing will come for it any more; often all has come."""
        if self._awaiting.get(request.user) is request:
            del self._awaiting[request.user]
        for nap in request.naps:
            if nap.sendings:
                if not nap.not_found:
                    log.warning("proxy did not answer a NAP request key=%s", nap.key)
                self._settle(nap, pb.CONTINUE_OUTCOME_GONE)

    def _watch_proxy(self, now: float) -> None:
        heard = max(self._proxy_answered_seconds or 0.0, self._proxy_asked_seconds)
        if not self._proxy_is_lost and now - heard > PROXY_LOST_SECONDS:
            self._proxy_is_lost = True
            log.warning(
                "proxy lost: no answer from its NAP socket address=%s; is Kamailio running, with sipnap.cfg and this "
                "SIPNAP_PORT and SIPNAP_SHIM_PORT?",
                self._proxy,
            )

    def _proxy_is_back(self) -> None:
        self._proxy_is_lost = False
        log.info("proxy back address=%s", self._proxy)

    def _forget_early_cancels(self, now: float) -> None:
        while self._early_cancels:
            request, until = next(iter(self._early_cancels.items()))
            if until > now:
                return
            del self._early_cancels[request]


def _name_of(nap: Nap) -> RequestName | None:
    """What a CANCEL of its request would name it by; None if that cannot be read."""
    state = nap.suspension.state
    try:
        return read_head(state.head or head_of(state.raw_request)).name
    except RequestHeadError:
        return None
