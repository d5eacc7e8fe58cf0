package redis

import "github.com/redis/rueidis"

// scripts are what a connection runs in Redis. Connections do not share them:
// while one loads a script into a Redis that hangs, all users of it wait.
type scripts struct{ claim, register, settle, lookup *rueidis.Lua }

func newScripts() scripts {
	// Redis computes the SHA-1 that names a script: doing so in this process
	// would end it with GODEBUG=fips140=only
	hashedByRedis := rueidis.WithLoadSHA1(true)
	return scripts{
		claim:    rueidis.NewLuaScript(claimScript, hashedByRedis),
		register: rueidis.NewLuaScript(registerScript, hashedByRedis),
		settle:   rueidis.NewLuaScript(settleScript, hashedByRedis),
		lookup:   rueidis.NewLuaScriptReadOnly(lookupScript, hashedByRedis),
	}
}

// An ID has two keys, in the same slot of a Cluster. delivered_key exists while
// the ID is remembered as delivered, and contains the digest of the body.
// claim_key exists while the ID is in flight, and contains the token of the
// claim, followed by "w" if another instance waits for its end. All times are
// by the clock of Redis, in milliseconds.
//
// A script can be run again without harm, so an operation is repeated when the
// reply to it was lost.

// idKeys begins each script.
const idKeys = `
local delivered_key, claim_key = KEYS[1], KEYS[2]`

// parseClaim finds out which instance has the claim. A token is the name of an
// instance and a number of 20 digits. An instance has one claim on an ID at a
// time, with a greater number each time. So it also owns a claim with an
// earlier token of its own: it has ended that claim, and Redis does not know.
const parseClaim = `
local token = ARGV[1]
local claim = redis.call('GET', claim_key)
local owner = claim and string.sub(claim, 1, #token)
local waiting = claim and string.sub(claim, #token + 1) or ''
local own = owner and #owner == #token and string.sub(owner, 1, -21) == string.sub(token, 1, -21) and owner <= token
`

// claimScript returns {'delivered', digest}, or {'granted', digest}, where the
// digest is that of the delivery that the claim replaces or empty, or {'taken',
// lease}, where the lease is that of another instance, in milliseconds.
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

// registerScript adds a claim that Redis may have lost or never known. It returns
// 'added', 'known', or 'taken' if another instance has a claim.
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

// settleScript ends a claim, if the token is still the current one. An empty
// digest means that the delivery failed. A success is recorded for the
// retention. If the claim is no longer current, this is so only if the ID was
// not delivered after the claim was made: if there is no digest, or the one that
// the claim replaces, or any with replaces 'any', or a value that is no digest.
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
	redis.pcall('PUBLISH', channel, delivered_key) -- fails if the ACL does not permit the channel: waiters poll
end
return 'settled'`

// lookupScript returns the digest, the milliseconds until it is forgotten, and
// whether the ID is in flight.
const lookupScript = idKeys + `
return {redis.call('GET', delivered_key), redis.call('PTTL', delivered_key), redis.call('EXISTS', claim_key)}`
