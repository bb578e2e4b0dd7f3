"""Routes that call operations and run tasks; the Request-URI's user part says which."""

import asyncio

from sipnap.shim.sip import App, Call, Task, operation_message

app = App()


@app.request_route
async def main(call: Call) -> None:
    name, _, argument = call.request_user.partition("-")
    if name == "directory":
        result = await call.operation("directory", {"number": argument}, group="lookups")
        assert result.text("call_id") == call.call_id, "another call's answer"
        call.redirect(result.text("uri"), reason=f"{result.status} {result.values['digits']!r}")
    elif name == "both":
        result = await call.operations(
            operation_message("directory", {"number": argument}, prefix="d_"),
            operation_message("fail", prefix="f_"),
            timeout_seconds=3,
        )
        call.redirect(result.text("d_uri"), reason=f"{result.status} {result.error_code}: {result.error}")
    elif name == "two":
        result = await call.operations(
            operation_message("directory", {"number": argument}, prefix="d_"),
            operation_message("directory", {"number": argument * 2}, prefix="e_", group="lookups"),
        )
        call.redirect(result.text("d_uri"), reason=f"{result.status} {result.text('e_uri')}")
    elif name == "route":
        await call.async_route("RESUME", 3, [operation_message("directory", {"number": argument})])
    elif name == "task":
        is_accepted = call.run_task("FROM_CALL", call.call_id, seconds=float(argument))
        call.reply(404, f"accepted {is_accepted}")
    else:  # the operation of that name
        result = await call.operation(name, timeout_seconds=float(argument or 5))
        call.reply(500, f"{result.status} {result.error_code}: {result.error}")


@app.route("RESUME")
async def resume(call: Call) -> None:
    call.redirect(call.result.text("uri"), reason=f"resumed {call.status}")


@app.task("FROM_CALL")
async def from_call(task: Task) -> None:
    print(f"task of call {task.data.decode()} status={task.status}", flush=True)
    assert task.run_task("FROM_TASK", task.data, operations=[operation_message("flaky")], seconds=3)


@app.task("FROM_TASK")
async def from_task(task: Task) -> None:
    print(f"task of task {task.data.decode()} uri={task.result.text('uri')}", flush=True)


@app.task("RAISES")
async def raises(task: Task) -> None:
    raise LookupError("a bug in a task")


@app.task("SLOW")
async def slow(task: Task) -> None:
    print("slow task begun", flush=True)
    await asyncio.sleep(float(task.data))
    print(f"slow task done {task.key}", flush=True)
