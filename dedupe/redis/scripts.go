package redis

import "github.com/redis/rueidis"

// scripts are those of one connection: while one is loaded into Redis, which
// may hang, all who share it wait.
type scripts struct{ claimScript, settleScript, lookupScript *rueidis.Lua }

func newScripts() scripts {
	// Redis is to name them: their SHA-1 must not be computed in this process,
	// for that ends it with GODEBUG=fips140=only
	hashed := rueidis.WithLoadSHA1(true)
	return scripts{
		claimScript:  rueidis.NewLuaScript(claimScript, hashed),
		settleScript: rueidis.NewLuaScript(settleScript, hashed),
		lookupScript: rueidis.NewLuaScriptReadOnly(lookupScript, hashed),
	}
}

// An id has two keys, in one slot of a Cluster: KEYS[1] exists while it is
// remembered as delivered and holds the digest, KEYS[2] exists while it is in
// flight and holds the token of the claim, with a w after it once another
// instance waits for the end. All times are by the clock of Redis.

// ARGV: token, digest, lease in ms, 1 to redeliver. It answers with the digest
// that was delivered, or "" for a claim, or how many ms a claim of another
// lasts. To repeat it does no harm: the claim may have been granted already.
const claimScript = `
local delivered = redis.call('GET', KEYS[1])
if delivered and (delivered == ARGV[2] or ARGV[4] ~= '1') then return delivered end
local claim = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'GET', 'PX', ARGV[3])
if not claim then return '' end
if string.sub(claim, 1, #ARGV[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[3]) return '' end
if #claim == #ARGV[1] then redis.call('APPEND', KEYS[2], 'w') end
return redis.call('PTTL', KEYS[2])`

// ARGV: token, the digest that was delivered or "", retention in ms, channel,
// 1 if the claim may not have been granted, 1 if it was, besides, one to
// redeliver. It answers whether it counted: not if another owns the id by now. A
// claim that has run out counts, as long as nobody else has taken or delivered
// the id since; so does one that was never granted because Redis was away, and if
// it was to redeliver, it replaces what was delivered before.
const settleScript = `
local claim = redis.call('GET', KEYS[2])
local own = claim and string.sub(claim, 1, #ARGV[1]) == ARGV[1]
if claim and not own and ARGV[5] ~= '1' then return 0 end
if ARGV[2] ~= '' then
	if own or ARGV[6] == '1' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
	else redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) end
end
if own then
	redis.call('DEL', KEYS[2])
	if #claim > #ARGV[1] then redis.call('PUBLISH', ARGV[4], KEYS[1]) end
end
return 1`

// It answers with the digest, the ms until it is forgotten, and whether the id
// is in flight.
const lookupScript = `
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('EXISTS', KEYS[2])}`
