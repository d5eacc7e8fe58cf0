package redis

import "github.com/redis/rueidis"

// scripts are those of one connection: while one is loaded into Redis, which
// may hang, all operations that share it wait.
type scripts struct{ claimScript, registerScript, settleScript, lookupScript *rueidis.Lua }

func newScripts() scripts {
	// Redis is to name them: their SHA-1 must not be computed in this process,
	// for that ends it with GODEBUG=fips140=only
	hashed := rueidis.WithLoadSHA1(true)
	return scripts{
		claimScript:    rueidis.NewLuaScript(claimScript, hashed),
		registerScript: rueidis.NewLuaScript(registerScript, hashed),
		settleScript:   rueidis.NewLuaScript(settleScript, hashed),
		lookupScript:   rueidis.NewLuaScriptReadOnly(lookupScript, hashed),
	}
}

// An ID has two keys, in one slot of a Cluster. delivered_key exists while the
// ID is remembered as delivered, and holds the digest of the body. claim_key
// exists while the ID is in flight, and holds the token of the claim, followed
// by "w" once another instance waits for the end. All times are by the clock of
// Redis, in milliseconds.
//
// To repeat a script does no harm: an operation is repeated when its answer was
// lost.

// idKeys is the beginning of each script.
const idKeys = `
local delivered_key, claim_key = KEYS[1], KEYS[2]`

// parseClaim finds out who has the ID. A token is the name of an instance and a
// number of 20 digits. An instance has one claim on an ID at a time, with a
// greater number each time, so that it owns what is under an earlier token of
// its own, too: it has ended that claim, and Redis was not told.
const parseClaim = `
local token = ARGV[1]
local claim = redis.call('GET', claim_key)
local owner = claim and string.sub(claim, 1, #token)
local waiting = claim and string.sub(claim, #token + 1) or ''
local own = owner and #owner == #token and string.sub(owner, 1, -21) == string.sub(token, 1, -21) and owner <= token
`

// claimScript answers {'delivered', digest}, or {'granted', digest of the
// delivery that the claim replaces, or ”}, or {'taken', the ms that the claim
// of another instance lasts}.
const claimScript = idKeys + `
local digest, lease, redeliver = ARGV[2], ARGV[3], ARGV[4] == '1'
local delivered = redis.call('GET', delivered_key)
if delivered and (delivered == digest or not redeliver) then
	return {'delivered', delivered}
end` + parseClaim + `
if claim and not own then
	if waiting == '' then
		redis.call('APPEND', claim_key, 'w')
	end
	return {'taken', redis.call('PTTL', claim_key)}
end
redis.call('SET', claim_key, token .. waiting, 'PX', lease)
return {'granted', delivered or ''}`

// registerScript makes a claim known that Redis may have lost or never heard
// of. It answers 'added', 'known', or 'taken' by another instance.
const registerScript = idKeys + parseClaim + `
local lease = ARGV[2]
if owner == token then
	return 'known'
end
if claim and not own then
	return 'taken'
end
redis.call('SET', claim_key, token .. waiting, 'PX', lease)
return 'added'`

// settleScript ends a claim, if it is still that of the token. An empty digest
// means that the delivery failed. A success is recorded for the retention; if
// the claim was lost, only unless the ID was delivered since: over nothing, or
// over the digest that the claim was to replace, or over any, or over what is
// no digest.
const settleScript = idKeys + parseClaim + `
local digest, retention, replaces, channel = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local recorded = false
if digest ~= '' then
	local delivered = not own and redis.call('GET', delivered_key)
	if own or not delivered or delivered == replaces or replaces == 'any' or #delivered ~= #digest then
		redis.call('SET', delivered_key, digest, 'PX', retention)
		recorded = true
	end
end
if own then
	redis.call('DEL', claim_key)
end
if waiting ~= '' and (own or recorded) then
	redis.pcall('PUBLISH', channel, delivered_key) -- an ACL may permit no channel: they ask again
end
return 'settled'`

// lookupScript answers with the digest, the ms until it is forgotten, and
// whether the ID is in flight.
const lookupScript = idKeys + `
return {redis.call('GET', delivered_key), redis.call('PTTL', delivered_key), redis.call('EXISTS', claim_key)}`
