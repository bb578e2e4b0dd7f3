// A worker in Node: serves operations of a worker group, with the contract loaded at run time: no generated code.
//
//   npm install && node worker.js --group lookups [--sidecar HOST:PORT] [--concurrency N] [--protos DIRECTORY]
//
// The group has to be of kind remote: sipnap serve --group name=lookups,kind=remote. What a worker owes the sidecar is all
// here: it takes no more than it gave credits for, extends its leases at a third of their time, stops what nobody waits for
// any more, and on SIGTERM or SIGINT finishes what it has before it ends (a second signal ends it at once). It connects again
// when the sidecar is gone.

'use strict'

const os = require('node:os')
const path = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { parseArgs } = require('node:util')
const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const { values: flags } = parseArgs({
  options: {
    sidecar: { type: 'string', default: '127.0.0.1:5600' },
    group: { type: 'string', default: 'lookups' },
    concurrency: { type: 'string', default: '16' },
    protos: { type: 'string', default: path.join(__dirname, '..', '..', 'protos') },
  },
})
const concurrency = Number(flags.concurrency)

/** An error with a code that the script can read; `retryAfterMs`: another attempt after so long may do better. */
class OperationError extends Error {
  constructor(code, text, retryAfterMs) {
    super(text)
    this.code = code
    this.retryAfterMs = retryAfterMs
  }
}

// The operations: async functions of (arguments, transaction state, abort signal) to an object of named values. Values are
// strings, Buffers, whole numbers, booleans, or arrays of such; text arrives as Buffer, for it may stem from SIP.
const operations = {
  /** The account of a called user: a stand-in for a database that takes `ms` milliseconds. */
  async account({ user, ms = 50 }, state, signal) {
    if (!user) throw new OperationError('no_user', 'account needs the argument user')
    await sleep(ms, undefined, { signal })
    const name = user.toString('utf8')
    return { account: `account-of-${name}`, is_prepaid: name.length % 2 === 1, call_id: state?.call_id ?? '' }
  },
}

const sidecarError = ({ code, details }) => `${grpc.status[code] ?? code}: ${details}`
// What cannot get better by trying again: the hello is wrong, or the group does not exist.
const HOPELESS = new Set([grpc.status.INVALID_ARGUMENT, grpc.status.FAILED_PRECONDITION, grpc.status.UNIMPLEMENTED])

function fromValue(value) {
  if (!value?.kind) return Buffer.alloc(0)
  if (value.kind === 'list') return value.list.values.map(fromValue)
  return value.kind === 'integer' ? Number(value.integer) : value[value.kind]
}

function toValue(value) {
  if (Array.isArray(value)) return { list: { values: value.map(toValue) } }
  if (typeof value === 'boolean') return { boolean: value }
  if (Number.isSafeInteger(value)) return { integer: value }
  if (typeof value === 'string') return { text: Buffer.from(value) }
  if (Buffer.isBuffer(value)) return { text: value }
  throw new OperationError('bad_result', `${typeof value} is no value`)
}

const toMs = ({ seconds, nanos }) => Number(seconds) * 1000 + nanos / 1e6
const toDuration = (ms) => ({ seconds: Math.floor(ms / 1000), nanos: Math.floor(ms % 1000) * 1_000_000 })

async function run(lease, signal) {
  try {
    const given = Object.fromEntries(lease.arguments.map(({ name, value }) => [name, fromValue(value)]))
    const found = await operations[lease.operation](given, lease.state, signal)
    return { completed: { values: Object.entries(found).map(([name, value]) => ({ name, value: toValue(value) })) } }
  } catch (error) {
    const code = error instanceof OperationError ? error.code : 'error'
    const retry = error.retryAfterMs === undefined ? {} : { retry_after: toDuration(error.retryAfterMs) }
    return { failed: { error_code: code, error: String(error.message), ...retry } }
  }
}

let isLeaving = false
let leave = () => process.exit(0) // while no sidecar is connected

/** Serve one stream until it ends; resolves to whether the sidecar had welcomed us. */
function serve(service) {
  return new Promise((resolve, reject) => {
    const running = new Map() // lease id -> AbortController
    const stream = service.Work()
    let welcome = null
    let extending = null
    let isLast = false // nothing more will be leased
    let failure = null

    const endIfDone = () => {
      if (isLast && running.size === 0) stream.end()
    }
    leave = () => {
      isLeaving = true
      stream.write({ leaving: true })
    }

    function take(lease) {
      const abort = new AbortController()
      running.set(lease.lease_id, abort)
      run(lease, abort.signal).then((outcome) => {
        const isWanted = running.get(lease.lease_id) === abort && !abort.signal.aborted
        running.delete(lease.lease_id)
        const results = isWanted ? [{ lease_id: lease.lease_id, ...outcome }] : []
        // The place is free again: a credit, unless we leave.
        if (!stream.writableEnded) stream.write({ results, credits: isLeaving || isLast ? 0 : 1 })
        endIfDone()
      })
    }

    stream.on('data', (response) => {
      if (response.welcome) {
        welcome = response.welcome
        extending = setInterval(() => {
          if (running.size) stream.write({ extend: [...running.keys()] })
        }, toMs(welcome.lease_time) / 3)
        stream.write({ credits: concurrency })
        console.log(`worker.js: ready on ${flags.sidecar}, group ${flags.group}, ${concurrency} at once`)
      }
      for (const lease of response.leases) {
        if (isLeaving) stream.write({ results: [{ lease_id: lease.lease_id, released: {} }] })
        else take(lease)
      }
      for (const leaseId of [...response.cancels, ...response.stale]) running.get(leaseId)?.abort()
      if (response.go_away) {
        isLast = true
        endIfDone()
      }
    })
    stream.on('error', (error) => {
      failure = error // "status" follows
    })
    stream.on('status', (status) => {
      clearInterval(extending)
      leave = () => process.exit(0)
      for (const abort of running.values()) abort.abort() // somebody else has these jobs now
      if (!welcome && HOPELESS.has(status.code)) reject(new Error(sidecarError(status)))
      else if (failure) console.error(`worker.js: sidecar lost: ${sidecarError(status)}`)
      resolve(welcome !== null)
    })
    stream.write({
      hello: {
        protocol_version: 1,
        worker_id: `${os.hostname()}-${process.pid}`.replaceAll(/[^A-Za-z0-9._:-]/g, '-'),
        group: flags.group,
        operations: Object.keys(operations),
      },
    })
  })
}

async function main() {
  const options = { includeDirs: [flags.protos], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true }
  const file = path.join('sipnap', 'v1', 'worker_service.proto')
  const contract = grpc.loadPackageDefinition(protoLoader.loadSync(file, options)).sipnap.v1
  const service = new contract.WorkerService(flags.sidecar, grpc.credentials.createInsecure(), {
    // A sidecar that stands still is noticed within seconds.
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 5_000,
    'grpc.max_receive_message_length': 16 * 1024 * 1024,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1_000,
  })
  for (const name of ['SIGTERM', 'SIGINT']) process.on(name, () => (isLeaving ? process.exit(1) : leave()))
  let failures = 0
  while (!isLeaving) {
    failures = (await serve(service)) ? 1 : failures + 1
    // Jitter: workers must not knock in step.
    if (!isLeaving) await sleep(Math.min(50 * 2 ** failures, 1000) * (0.5 + Math.random() / 2))
  }
  service.close()
}

main().catch((error) => {
  console.error(`worker.js: ${error.message}`)
  process.exit(1)
})
