// A gateway as people write it with BuzzBip's documentation: Express, the
// documentation's way to check a signature ("Verify signatures" at
// https://buzzbip.com/developers/webhooks), and a set of the IDs that were
// delivered. It passes events on over connections that stay open.
const crypto = require('crypto');
const express = require('express');
const http = require('http');

const [port, backend] = process.argv.slice(2);
const secret = process.env.BUZZBIP_SECRET;
const agent = new http.Agent({ keepAlive: true });
const delivered = new Set();

function isGenuine(body, signature) {
  const expected = crypto.createHmac('sha256', secret).update(body).digest('hex');
  return signature !== undefined && signature.length === expected.length &&
    crypto.timingSafeEqual(Buffer.from(signature), Buffer.from(expected));
}

const app = express();
app.disable('x-powered-by');
app.post('/webhooks/buzzbip', express.raw({ type: '*/*', limit: '1mb' }), (req, res) => {
  if (!isGenuine(req.body, req.get('X-BuzzBip-Signature'))) {
    res.sendStatus(401);
    return;
  }
  const event = JSON.parse(req.body);
  if (delivered.has(event.id)) {
    res.set('X-BuzzBip-Result', 'duplicate').end();
    return;
  }
  const [host, backendPort] = backend.split(':');
  const forward = http.request({
    agent, host, port: backendPort, method: 'POST', path: req.url,
    headers: { ...req.headers, 'content-length': req.body.length },
  }, (answer) => {
    if (answer.statusCode >= 200 && answer.statusCode < 300) delivered.add(event.id);
    res.writeHead(answer.statusCode, answer.headers);
    answer.pipe(res);
  });
  forward.on('error', () => res.sendStatus(502));
  forward.end(req.body);
});
const server = app.listen(port, '127.0.0.1');
server.keepAliveTimeout = 120_000;
