"""What every framework needs: a session with the cluster, across all of its masters.

A call is repeated until the cluster has decided it, at whichever master leads, and is executed once at most. The event
stream is taken up again wherever it was lost. docs/framework-in-python.md says why each line is there.
"""

import asyncio
import os
import random

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from proffer.admin.v1 import admin_pb2, admin_pb2_grpc
from proffer.common.v1 import common_pb2 as common
from proffer.scheduler.v1 import scheduler_pb2 as pb
from proffer.scheduler.v1 import scheduler_pb2_grpc

CALL_SECONDS = 10
FIRST_EVENT_SECONDS = 3
PAUSE_SECONDS = (0.05, 2.0)
CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
]
# Codes that decide nothing: the call may have been executed or not.
UNDECIDED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}


class Refused(Exception):
    """The cluster has decided: no. `reason` is a word such as INVALID_OFFER."""

    def __init__(self, reason: str, message: str):
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def detail(error: grpc.RpcError, kind):
    """The detail of an error that is of this kind, if there is one."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        message = kind()
        if packed.Unpack(message):
            return message
    return None


class Masters:
    """Where the masters are, and which of them is asked."""

    def __init__(self, addresses: list[str]):
        self.addresses = addresses
        self.current = addresses[0]
        self.channels: dict[str, grpc.aio.Channel] = {}
        self.pause = PAUSE_SECONDS[0]

    def channel(self) -> grpc.aio.Channel:
        if self.current not in self.channels:
            self.channels[self.current] = grpc.aio.insecure_channel(self.current, options=CHANNEL)
        return self.channels[self.current]

    def answered(self):
        self.pause = PAUSE_SECONDS[0]

    async def turn(self, error: grpc.RpcError | None = None):
        """Chooses whom to ask next, after a failure that decided nothing; raises one that did."""
        reason, leader, wait = "", None, 0.0
        if error is not None:
            info = detail(error, error_details_pb2.ErrorInfo)
            reason = info.reason if info else error.code().name
            retry = detail(error, error_details_pb2.RetryInfo)
            if error.code() not in UNDECIDED and retry is None:
                raise Refused(reason, error.details())
            wait = retry.retry_delay.ToMilliseconds() / 1_000 if retry else 0.0
            leader = dict(error.trailing_metadata() or ()).get("proffer-leader")
        # Two masters may name each other while they elect one: the pause grows in any case.
        await asyncio.sleep(max(wait, random.uniform(0, self.pause)))
        self.pause = min(2 * self.pause, PAUSE_SECONDS[1])
        if leader:
            self.current = leader
        elif not wait:
            others = [address for address in self.addresses if address != self.current]
            self.current = random.choice(others or self.addresses)


class Session:
    """A framework's session with the cluster, whichever master leads it."""

    def __init__(self, masters: Masters, info: common.FrameworkInfo):
        self.masters = masters
        self.info = info
        self.id: int | None = None
        self.session: int | None = None
        self.seq = 0
        self.suppressed: list[str] = []
        # Were the first answer lost, these bytes would find the framework that it told of.
        self.origin = os.urandom(16)

    async def call(self, name: str, request):
        """A call, repeated with the same number and content until it is decided, and executed once at most.

        Calls are made one after the other, so that the answers to all below the present one have been seen.
        """
        self.seq += 1
        header = pb.CallHeader(
            framework_id=self.id, session=self.session, seq=self.seq, done_below=self.seq
        )
        request.call.CopyFrom(header)
        while True:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(self.masters.channel())
            try:
                answer = await getattr(stub, name)(request, timeout=CALL_SECONDS)
                self.masters.answered()
                return answer
            except grpc.aio.AioRpcError as error:
                await self.masters.turn(error)

    async def events(self):
        """Lists of events (name, content), without end: a lost stream is taken up again in the same session.

        `subscribed` says that it was: all offers are void, and a snapshot of the tasks follows.
        """
        while True:
            request = pb.SubscribeRequest(info=self.info, origin=self.origin)
            request.suppressed_roles.extend(self.suppressed)
            if self.session is not None:
                request.framework_id, request.session = self.id, self.session
            stub = scheduler_pb2_grpc.SchedulerServiceStub(self.masters.channel())
            stream = stub.Subscribe(request)
            silence, error = FIRST_EVENT_SECONDS, None
            try:
                while (read := await asyncio.wait_for(stream.read(), silence)) is not grpc.aio.EOF:
                    events = [(e.WhichOneof("event"), e) for e in read.events]
                    events = [(kind, getattr(event, kind)) for kind, event in events if kind]
                    for kind, event in events:
                        if kind == "subscribed":
                            self.id, self.session = event.framework_id, event.session
                            self.seq = max(self.seq, event.last_seq)
                            silence = 2.5 * event.heartbeat_ms / 1_000
                            self.masters.answered()
                        elif kind == "error" and event.code not in ("NOT_LEADER", "RESYNC"):
                            raise Refused(event.code, event.message)
                    yield events
            except asyncio.TimeoutError:
                pass
            except grpc.aio.AioRpcError as failure:
                error = failure
            finally:
                stream.cancel()
            await self.masters.turn(error)

    async def output(self, task: str) -> bytes:
        """What a task has written to its standard output."""
        request = admin_pb2.ReadLogsRequest(framework_id=self.id, task_id=task, stream="stdout")
        data = b""
        while True:
            request.offset = len(data)
            stub = admin_pb2_grpc.AdminServiceStub(self.masters.channel())
            try:
                async for piece in stub.ReadLogs(request, timeout=CALL_SECONDS):
                    data += piece.data
                return data
            except grpc.aio.AioRpcError as error:
                await self.masters.turn(error)
