"""A deterministic simulation of everything between a proxy's suspended transaction and the sidecar's disk.

What runs is the product: the shim's bridge, the session and its table, the session's servicer, the dispatcher, the
engine, and recovery. What is simulated is the world around it, all of it drawn from one seed: a virtual clock, the
network, the journals' disk, the proxy, and whatever goes wrong. The same seed gives the same run, to the last message.

    python -m tests.simulator --seeds 10000 --jobs 2     many runs
    python -m tests.simulator --seed 4711                one run, with everything that happened in it

**The network.** A gRPC stream keeps order and loses nothing while it lives, so loss, duplication and reordering are
simulated where they occur: a stream may be reset at any moment, or fall silent, and loses what is on its way on one
side or on both; each side learns of it at its own time, and meanwhile the next stream may be open, so that across
streams anything may be repeated or come late. Writers wait for slow readers. The datagrams between shim and proxy are
lost, reordered and, those of NAP requests and their answers, doubled.

**Faults.** Sidecar and shim are killed, at random times and at chosen steps (as a commit begins, when it is done but
not known to be, as an acknowledgement, a continue or an answer is on its way), stopped and continued, ended in good
order, and killed both at once. The proxy is killed and starts with a new boot epoch. Sidecars refuse connections, disks
are full. Callers cancel at any moment. Each run has a few kinds of faults only, and many of those. After them
everything is repaired, and what is left has to end.

**Sidecars.** One, or two with a journal each, or two that share one journal as they share Redis: there a front end is
owned by the sidecar that claimed it last, and the others are fenced.

**Promises** that are checked during and after every run:

- accepted means kept: nothing is acknowledged or continued that was never in the journal; the journal forgets nothing
  that still waits; when a sidecar is killed, all that it has accepted is on its disk;
- nothing hangs: each nap that was handed over ends by a continue, in time, unless what went wrong explains that it
  ended as lost, refused or left to the proxy's own timer;
- applied once: the shim is handed each continue once, as often as it is sent, and only what a sidecar has said is
  over; a nap whose continue has come is not submitted again;
- never early: at the shim and at the proxy; a continue leaves the sidecar in its time, and a number no more ahead of it
  than the session has said;
- answered once: the shim says once what became of a continue, and that a nap was resumed only if it was;
- numbers name one nap, in the stream that gave them: what is over by its number had one in this very stream, is a plain
  nap, and is answered for by it only if it was resumed;
- a nap is submitted with what is left of its delay, and kept with the time that this leads to;
- cancel is final: after it nothing is handed to the shim, nor sent by a sidecar that has confirmed it;
- nothing is left over in tables, heaps and journals, and the counters add up;
- no task and no callback of the product raises what nobody expects.

**Operations.** Some runs have naps with operations, of groups that are resized meanwhile: coroutines that take their
time, fail, are tried again, do not let go, or never end. Each nap has to get its own results, and each operation is run
as often as its policy says for each time that a sidecar learns of it.

**Not simulated**: workers in other processes, unary RPCs, TLS; gRPC, SQLite and Redis themselves (each has tests with
the real one); clocks that run apart, and a wall clock that jumps between two lives of a sidecar.
"""
