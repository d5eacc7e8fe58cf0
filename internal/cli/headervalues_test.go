package cli

import (
	"slices"
	"testing"
)

func TestExplainTakesTheHeaderAsItIsCopied(t *testing.T) {
	const hash = "700d048d09cd1f75"
	for text, want := range map[string][]string{
		hash:                                    {hash},
		"":                                      {""},
		" " + hash:                              {" " + hash}, // the sender's own mistakes stay
		`"` + hash + `"`:                        {`"` + hash + `"`},
		"sha256=" + hash:                        {"sha256=" + hash},
		"X-BuzzBip-Signature: " + hash:          {hash},
		"x-buzzbip-signature:" + hash:           {hash},
		"X-BUZZBIP-SIGNATURE: " + hash + "\r\n": {hash},
		"> X-BuzzBip-Signature: " + hash + "\n> Accept: */*":                                {hash},
		"* [HTTP/2] [1] [x-buzzbip-signature: " + hash + "]":                                {hash},
		"X-BuzzBip-Signature: sha256=" + hash:                                               {"sha256=" + hash},
		`X-BuzzBip-Signature: "` + hash + `"`:                                               {`"` + hash + `"`},
		"X-BuzzBip-Signature: cAAEjQnNH3U=":                                                 {"cAAEjQnNH3U="},
		"X-BuzzBip-Signature:":                                                              {""},
		`-H 'X-BuzzBip-Signature: ` + hash + `' -d @x`:                                      {hash},
		`-H "X-BuzzBip-Signature: ` + hash + `"`:                                            {hash},
		`'X-BuzzBip-Signature: ` + hash + `\r\n'`:                                           {hash},
		`"X-Buzzbip-Signature":["` + hash + `"]`:                                            {hash},
		`{"headers":{"Accept":["*/*"],"X-Buzzbip-Signature":["` + hash + `"],"Via":["a"]}}`: {hash},
		`\"X-Buzzbip-Signature\": [\"` + hash + `\"],`:                                      {hash},
		`"X-Buzzbip-Signature":["sha256=` + hash + `","b"]`:                                 {"sha256=" + hash, "b"},
		`"X-Buzzbip-Signature":[]`:                                                          nil,
		`["` + hash + `"]`:                                                                  {hash},
		`[` + hash + `]`:                                                                    {hash},
		`"x-buzzbip-signature": "` + hash + `",`:                                            {hash},
		`{"name": "X-BuzzBip-Signature", "value": "` + hash + `"}`:                          {hash},
		`'HTTP_X_BUZZBIP_SIGNATURE': '` + hash + `', 'PATH_INFO': '/'`:                      {hash},
		`'HTTP_X_BUZZBIP_SIGNATURE' => '` + hash + `',`:                                     {hash},
		`("X-BuzzBip-Signature", "` + hash + `")`:                                           {hash},
		`[HTTP_X_BUZZBIP_SIGNATURE] => ` + hash:                                             {hash},
		`map[X-Buzzbip-Signature:[` + hash + `]]`:                                           {hash},
		"HTTP_X_BUZZBIP_SIGNATURE=" + hash:                                                  {hash},
	} {
		if got := headerValues(text); !slices.Equal(got, want) {
			t.Errorf("%s is read as %q, want %q", text, got, want)
		}
	}
}
