// Naps from Node, with the contract loaded at run time: no generated code.
//
//   npm install && node nap.js [--sidecar HOST:PORT] [--protos DIRECTORY]
//
// It waits with Sleep, then plays a front end: opens a Session under the name "node-example", has a transaction of its own
// suspended with SuspendRoute, receives the continue over the session and answers it APPLIED; then the same with an
// operation in place of the time, and with a task. Exit code 0 if all went so.

'use strict'

const path = require('node:path')
const { parseArgs, promisify } = require('node:util')
const grpc = require('@grpc/grpc-js')
const protoLoader = require('@grpc/proto-loader')

const FRONT_END_ID = 'node-example'
const NAP_MS = 200
const PATIENCE_MS = 10_000

const { values: flags } = parseArgs({
  options: {
    sidecar: { type: 'string', default: '127.0.0.1:5600' },
    protos: { type: 'string', default: path.join(__dirname, '..', '..', 'protos') },
  },
})

function loadContract() {
  const files = ['nap_service.proto', 'front_end_service.proto'].map((file) => path.join('sipnap', 'v1', file))
  // keepCase: names as in the protos. longs: a boot epoch may not fit into a JavaScript number.
  const options = { includeDirs: [flags.protos], keepCase: true, longs: String, enums: String, defaults: true }
  return grpc.loadPackageDefinition(protoLoader.loadSync(files, options)).sipnap.v1
}

const started = process.hrtime.bigint()

function elapsedMs(since = started) {
  return Number(process.hrtime.bigint() - since) / 1e6
}

function say(what) {
  console.log(`${elapsedMs().toFixed(0).padStart(6)} ms  ${what}`)
}

function duration(ms) {
  return { seconds: Math.floor(ms / 1000), nanos: (ms % 1000) * 1_000_000 }
}

/** The next message of a stream for which `wanted` gives something, and what it gives. */
function received(stream, wanted) {
  return new Promise((resolve, reject) => {
    stream.on('error', reject)
    stream.on('end', () => reject(new Error('the sidecar closed the session')))
    stream.on('data', function look(message) {
      const found = wanted(message)
      if (found) {
        stream.off('data', look)
        resolve(found)
      }
    })
  })
}

async function main() {
  const contract = loadContract()
  const credentials = grpc.credentials.createInsecure()
  const naps = new contract.NapService(flags.sidecar, credentials)
  const frontEnds = new contract.FrontEndService(flags.sidecar, credentials)
  const deadline = () => ({ deadline: Date.now() + PATIENCE_MS })
  const call = (method, request) => promisify(naps[method].bind(naps))(request, new grpc.Metadata(), deadline())

  // 1. Sleep: the caller's own next line is the next action.
  say(`Sleep for ${NAP_MS} ms`)
  await call('Sleep', { duration: duration(NAP_MS) })
  say('slept')

  // 2. A session: the first message is Hello, alone; the first answer is Welcome, alone.
  const session = frontEnds.Session(deadline())
  const welcomed = received(session, (message) => message.welcome)
  session.write({
    hello: { protocol_version: 1, front_end_id: FRONT_END_ID, boot_epoch: String(Math.floor(Date.now() / 1000)) },
  })
  const welcome = await welcomed
  say(`session open, sidecar ${welcome.instance_id}, ${welcome.durability}`)

  // 3. SuspendRoute: returns once accepted. Epoch 0 stands for that of the front end's present session.
  const continued = received(session, (message) => message.continues[0])
  continued.catch(() => {}) // awaited below; a refusal of SuspendRoute must be able to end us first
  const key = { front_end_id: FRONT_END_ID, boot_epoch: '0', transaction_index: 4711, transaction_label: 815, nap_number: 1 }
  const state = { method: Buffer.from('INVITE'), call_id: Buffer.from('node-example@127.0.0.1') }
  const suspended = process.hrtime.bigint()
  const accepted = await call('SuspendRoute', {
    suspension: { key, resume_route: 'RESUME', delay: duration(NAP_MS), state },
  })
  say(`suspended for ${NAP_MS} ms, ${accepted.durability}`)

  // 4. The continue comes over the session, and again until it is answered for.
  const resumed = await continued
  const sleptMs = elapsedMs(suspended)
  say(`continue for route ${resumed.resume_route}, ${resumed.status}, attempt ${resumed.attempt}`)
  session.write({ results: [{ key: resumed.key, outcome: 'CONTINUE_OUTCOME_APPLIED' }] })
  say('answered APPLIED')

  // 5. With an operation the delay is the most that it may take: the continue comes as soon as it has ended, with what
  // it found in `values`. "pass" finds nothing; "http", "enum" and your own are asked for in the same way.
  const answered = received(session, (message) => message.continues[0])
  answered.catch(() => {})
  const operation = { name: 'pass', arguments: [{ name: 'number', value: { text: Buffer.from('4711') } }], group: 'default' }
  const nextKey = { ...key, nap_number: 2 }
  await call('SuspendRoute', {
    suspension: { key: nextKey, resume_route: 'ANSWERED', delay: duration(PATIENCE_MS), state, operations: [operation] },
  })
  const answer = await answered
  say(`continue for route ${answer.resume_route}, ${answer.status}, ${answer.values.length} values`)
  session.write({ results: [{ key: answer.key, outcome: 'CONTINUE_OUTCOME_APPLIED' }] })

  // 6. A task: a route that the front end runs without a transaction. Any program may ask for it.
  const ran = received(session, (message) => message.continues[0])
  ran.catch(() => {})
  await call('RunTask', { front_end_id: FRONT_END_ID, route: 'CLEAN_UP', data: Buffer.from('4711') })
  const task = await ran
  say(`task for route ${task.resume_route}, data ${task.data}`)
  session.write({ results: [{ key: task.key, outcome: 'CONTINUE_OUTCOME_APPLIED' }] })
  session.end()

  naps.close()
  frontEnds.close()
  if (resumed.resume_route !== 'RESUME' || resumed.status !== 'CONTINUE_STATUS_OK') {
    throw new Error(`an unexpected continue: ${JSON.stringify(resumed)}`)
  }
  if (answer.resume_route !== 'ANSWERED' || answer.status !== 'CONTINUE_STATUS_OK') {
    throw new Error(`an unexpected continue: ${JSON.stringify(answer)}`)
  }
  if (task.resume_route !== 'CLEAN_UP' || task.data.toString() !== '4711' || task.key.nap_number !== 0) {
    throw new Error(`an unexpected task: ${JSON.stringify(task)}`)
  }
  if (sleptMs < NAP_MS) {
    throw new Error(`resumed after ${sleptMs} ms, before its time`)
  }
}

main().catch((error) => {
  console.error(`nap.js: ${error.message}`)
  process.exit(1)
})
