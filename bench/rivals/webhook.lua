-- Checks the signature and the ID of an event, as people write it for nginx: the
-- HMAC by OpenSSL, which nginx is linked with, and the IDs in a shared dictionary.
local ffi = require "ffi"
local cjson = require "cjson.safe"

ffi.cdef [[
typedef struct evp_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *evp_md, const void *key, int key_len,
	const unsigned char *data, size_t data_len, unsigned char *md, unsigned int *md_len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]

local secret = os.getenv("BUZZBIP_SECRET")
local sha256 = ffi.C.EVP_sha256()
local sum = ffi.new("unsigned char[32]")
local webhook = {}

local function hex(bytes)
	return (bytes:gsub(".", function(c) return string.format("%02x", c:byte()) end))
end

function webhook.access()
	ngx.req.read_body()
	local body = ngx.req.get_body_data()
	local signature = ngx.var.http_x_buzzbip_signature
	if not body or not signature or #signature ~= 64 then
		return ngx.exit(401)
	end
	ffi.C.HMAC(sha256, secret, #secret, body, #body, sum, nil)
	local expected = hex(ffi.string(sum, 32))
	if ffi.C.CRYPTO_memcmp(expected, signature:lower(), 64) ~= 0 then
		return ngx.exit(401)
	end
	local event = cjson.decode(body)
	if type(event) ~= "table" or type(event.id) ~= "string" then
		return ngx.exit(400)
	end
	if not ngx.shared.delivered:add(event.id, true, 86400) then
		ngx.header["X-BuzzBip-Result"] = "duplicate"
		return ngx.exit(200)
	end
	ngx.ctx.id = event.id
end

-- a failed delivery must let the retry through
function webhook.log()
	if ngx.ctx.id and (ngx.status < 200 or ngx.status > 299) then
		ngx.shared.delivered:delete(ngx.ctx.id)
	end
end

return webhook
