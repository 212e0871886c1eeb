"""A whole framework: runs N copies of a command, prints what they print, and exits with their result.

    python batch.py --masters 127.0.0.1:5050 --tasks 3 -- sh -c 'echo I am $PROFFER_ARRAY_INDEX'

It uses nothing of proffer's but stubs generated from `proto`. What is here is this framework's own: which offers to
use, and what to make of each status. What every framework needs is in `session.py`.
"""

import argparse
import asyncio
import sys

from proffer.common.v1 import common_pb2 as common
from proffer.scheduler.v1 import scheduler_pb2 as pb
from session import Masters, Refused, Session

OUTPUTS_AT_ONCE = 8
FINAL = {
    common.TASK_STATE_FINISHED,
    common.TASK_STATE_FAILED,
    common.TASK_STATE_KILLED,
    common.TASK_STATE_ERROR,
    common.TASK_STATE_DROPPED,
    common.TASK_STATE_GONE_BY_OPERATOR,
}


class Batch:
    """Copies of a command, and what came of them."""

    def __init__(self, session: Session, spec: common.TaskSpec, total: int):
        self.session, self.spec, self.total = session, spec, total
        self.waiting = list(range(total, 0, -1))
        # Launched and not ended: task id, and the launch.
        self.running: dict[str, int] = {}
        self.attempts = self.finished = self.failed = 0
        # The newest status of each launch that was looked at; those that must be acknowledged; those of a snapshot.
        self.seen: dict[int, tuple[int, int]] = {}
        self.unacknowledged: dict[int, tuple[int, int]] = {}
        self.snapshot: set[int] = set()
        self.outputs: set[asyncio.Task] = set()
        self.readers = asyncio.Semaphore(OUTPUTS_AT_ONCE)

    async def run(self):
        """Runs all copies to their end."""
        async for events in self.session.events():
            for kind, event in events:
                if handler := getattr(self, f"on_{kind}", None):
                    await handler(event)
            # Only now: what is acknowledged is never told again.
            await self.acknowledge()
            if self.finished + self.failed == self.total:
                break
        await asyncio.gather(*self.outputs)

    async def on_subscribed(self, _event):
        self.snapshot = set()

    async def on_snapshot(self, event):
        for task in event.tasks:
            self.snapshot.add(task.launch_id)
            await self.on_status(task.task_id, task.launch_id, task.status)

    async def on_snapshot_end(self, _event):
        # Ended, acknowledged and forgotten, while nobody here looked.
        for task, launch in list(self.running.items()):
            if launch not in self.snapshot:
                self.ended(task, launch, "nobody remembers how it ended")

    async def on_offers(self, event):
        for offer in event.offers:
            await self.use(offer)

    async def on_update(self, event):
        await self.on_status(event.task_id, event.launch_id, event.status)
        if not event.no_acknowledgement:
            self.unacknowledged[event.launch_id] = self.seen[event.launch_id]

    async def use(self, offer: pb.Offer):
        """Launches as many copies as an offer holds; the rest of it is given back."""
        free = {r.kind: r.amount for r in offer.resources if not r.HasField("attribution")}
        fit = min(free.get(need.kind, 0) // need.amount for need in self.spec.resources)
        copies = [self.waiting.pop() for _ in range(min(fit, len(self.waiting)))]
        if not copies:
            await self.session.call("Decline", pb.DeclineRequest(offer_ids=[offer.id]))
            return
        launch = pb.Launch(spec=self.spec)
        for copy in copies:
            self.attempts += 1
            name = f"{copy}-{self.attempts}"
            launch.tasks.add(task_id=name, array_index=copy, array_count=self.total)
        request = pb.AcceptRequest()
        part = request.parts.add(offer_ids=[offer.id])
        part.operations.add(launch=launch)
        try:
            answer = await self.session.call("Accept", request)
            outcomes = answer.parts[0].operations[0].tasks
        except Refused as why:
            # The offer was withdrawn, or went with its leader: nothing was launched.
            if why.reason != "INVALID_OFFER":
                raise
            outcomes = [pb.TaskOutcome(refused=why.reason)] * len(copies)
        for copy, task, outcome in zip(copies, launch.tasks, outcomes):
            if outcome.refused:
                self.waiting.append(copy)
            else:
                self.running[task.task_id] = outcome.launch_id
        if not self.waiting and not self.session.suppressed:
            self.session.suppressed = list(self.session.info.roles)
            await self.session.call("Suppress", pb.SuppressRequest())

    async def on_status(self, task: str, launch: int, status: common.Status):
        """A status, which may come again, and from a snapshot as well as from an update."""
        position = (status.master_seq, status.task_seq)
        if position <= self.seen.get(launch, (-1, -1)):
            return
        self.seen[launch] = position
        if self.running.get(task) != launch or status.state not in FINAL:
            return
        if status.state == common.TASK_STATE_DROPPED:
            # Never started, for a passing reason.
            del self.running[task]
            self.waiting.append(int(task.split("-")[0]))
            self.session.suppressed = []
            await self.session.call("Revive", pb.ReviveRequest())
        elif status.state == common.TASK_STATE_FINISHED:
            self.ended(task, launch)
        else:
            state = common.TaskState.Name(status.state).removeprefix("TASK_STATE_")
            self.ended(task, launch, f"{state} {status.reason} {status.message}")

    def ended(self, task: str, launch: int, failure: str = ""):
        del self.running[task]
        if failure:
            self.failed += 1
            print(f"task {task}: {failure}", file=sys.stderr)
        else:
            self.finished += 1
        self.outputs.add(asyncio.create_task(self.show(task)))

    async def show(self, task: str):
        async with self.readers:
            try:
                output = await self.session.output(task)
            except Refused as why:
                print(f"task {task}: no output: {why}", file=sys.stderr)
                return
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()

    async def acknowledge(self):
        acks = [
            pb.AcknowledgeRequest.Ack(launch_id=launch, master_seq=master, task_seq=task)
            for launch, (master, task) in self.unacknowledged.items()
        ]
        self.unacknowledged.clear()
        if acks:
            await self.session.call("Acknowledge", pb.AcknowledgeRequest(acks=acks))


async def main(args) -> int:
    resources = [
        common.Resource(kind="cpus", amount=round(args.cpus * 1_000)),
        common.Resource(kind="mem", amount=args.mem << 20),
    ]
    spec = common.TaskSpec(argv=args.command, resources=resources)
    info = common.FrameworkInfo(name="batch.py", roles=["*"], failover_timeout_ms=60_000)
    session = Session(Masters(args.masters.split(",")), info)
    batch = Batch(session, spec, args.tasks)
    try:
        await batch.run()
    finally:
        # Also when interrupted: nothing shall go on without us.
        if session.session is not None:
            await session.call("Teardown", pb.TeardownRequest())
    print(f"{batch.finished} of {args.tasks} finished", file=sys.stderr)
    return 0 if batch.finished == args.tasks else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Runs N copies of a command.")
    parser.add_argument("--masters", default="127.0.0.1:5050", help="HOST:PORT[,…], any of them")
    parser.add_argument("--tasks", type=int, default=1, help="how many copies")
    parser.add_argument("--cpus", type=float, default=0.1, help="of each")
    parser.add_argument("--mem", type=int, default=32, help="of each, in MiB")
    parser.add_argument("command", nargs="+")
    try:
        sys.exit(asyncio.run(main(parser.parse_args())))
    except Refused as why:
        sys.exit(f"batch: {why}")
    except KeyboardInterrupt:
        sys.exit(130)
