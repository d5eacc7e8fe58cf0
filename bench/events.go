package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// secret signs the events.
const secret = "bench-secret-of-32-bytes-exactly"

// duplicates is how many events are sent again and again by the scenarios
// about duplicates.
const duplicates = 64

// signature is the hex digits of an HMAC.
type signature [2 * sha256.Size]byte

// events are signed events that differ in their IDs. The bodies are made when
// they are sent, by patching the ID into a buffer: what is prepared is only the
// signatures, so that the sender's work is the same for all scenarios.
type events struct {
	body       []byte // with the ID of some event
	idAt       int    // offset of the ID
	batch      uint32 // in the IDs: no other events have it
	signatures []signature
}

const idLength = len("evt_") + 8 + 8

// newEvents signs n events with bodies of a size, and those that are sent as
// duplicates, which come last.
func newEvents(batch uint32, size, n int) *events {
	e := &events{body: newBody(size), batch: batch, signatures: make([]signature, n+duplicates)}
	e.idAt = bytes.Index(e.body, []byte("evt_"))
	workers := runtime.GOMAXPROCS(0)
	var working sync.WaitGroup
	for w := range workers {
		working.Go(func() {
			body := bytes.Clone(e.body)
			mac := hmac.New(sha256.New, []byte(secret))
			for i := w; i < len(e.signatures); i += workers {
				e.patchID(body, i)
				e.signatures[i] = sign(mac, body)
			}
		})
	}
	working.Wait()
	return e
}

// fresh is how many events are no duplicates.
func (e *events) fresh() int { return len(e.signatures) - duplicates }

// patchID makes body, a copy of e.body, the i-th event.
func (e *events) patchID(body []byte, i int) {
	id := body[e.idAt+len("evt_") : e.idAt+idLength]
	putHex(id[:8], e.batch)
	putHex(id[8:], uint32(i))
}

func putHex(to []byte, n uint32) {
	for i := range to {
		to[len(to)-1-i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
}

func sign(mac hash.Hash, body []byte) (s signature) {
	mac.Reset()
	mac.Write(body)
	var sum [sha256.Size]byte
	hex.Encode(s[:], mac.Sum(sum[:0]))
	return s
}

// texts are what people write to a shop: with quotes, line breaks, accents,
// other scripts and emoji, some of them escaped as ASCII-only encoders do.
var texts = []string{
	`Hi! Where is my order #48213? It said \"out for delivery\" two days ago 😕`,
	`¿Tienen esta talla en azul? La vi en su página pero no me deja añadirla 🛒`,
	`Thanks a lot!\n\nBest,\nZo\u00eb`,
	`Könnt ihr die Lieferadresse noch ändern? Straße: Müllerweg 7, 3. OG`,
	`こんにちは、返品の方法を教えてください。よろしくお願いします🙏`,
	`ok \ud83d\udc4d`,
	`My discount code \"SPRING-15\" says \"expired\" \\ invalid, but the mail says it is valid until Sunday. Can you check? https:\/\/shop.example\/cart?id=93&ref=mail`,
	`مرحبا، هل الشحن مجاني؟`,
}

// newBody returns an event of exactly a size, at least 512 bytes, as chat
// platforms send it: one message, and in larger ones its conversation's history.
func newBody(size int) []byte {
	const end = `"}}`
	var b strings.Builder
	fmt.Fprintf(&b, `{"id":"evt_%s","type":"message.received","createdAt":%q,"data":{`,
		strings.Repeat("0", 16), time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))
	b.WriteString(`"workspace":{"id":"ws_81","plan":"growth"},"channel":"whatsapp","conversation":{"id":"cnv_5d2e","assignee":null,"unread":3},"history":[`)
	for i := 0; ; i++ {
		message := fmt.Sprintf(`{"id":"msg_%06x","at":%d,"from":{"id":"cnt_%d","name":"Zoë Müller","tags":["vip","newsletter"],"optedIn":true},"text":"%s","price":%d.%02d,"attachments":[],"replyTo":null}`,
			i*7919, 1780324320000+int64(i)*61017, i%7, texts[i*5%len(texts)], i*13%200, i*7%100)
		if b.Len()+len(message)+len(`,],"note":"`)+len(end) > size {
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(message)
	}
	b.WriteString(`],"note":"`)
	b.WriteString(strings.Repeat("See you soon. ", 64)[:max(0, size-b.Len()-len(end))])
	b.WriteString(end)
	return []byte(b.String())
}

// parseSize reads a size such as 64KiB.
func parseSize(s string) (int, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n < 512 || n > 1<<20 {
		return 0, fmt.Errorf("-sizes: %q is no size from 512B to 1MiB, such as 64KiB", s)
	}
	return int(n), nil
}

// formatSize is the reverse of parseSize.
func formatSize(n int) string {
	switch {
	case n%(1<<20) == 0:
		return strconv.Itoa(n>>20) + "MiB"
	case n%(1<<10) == 0:
		return strconv.Itoa(n>>10) + "KiB"
	default:
		return strconv.Itoa(n) + "B"
	}
}
