package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// path is where events are sent.
const path = "/webhooks/buzzbip"

// requestTimeout is when a request has failed.
const requestTimeout = 30 * time.Second

// answer is a response, as far as the bench looks at it.
type answer struct {
	status int
	result string // X-BuzzBip-Result
}

// sender is one connection, used by one goroutine.
type sender interface {
	send(i int, s signature) (answer, error) // the i-th event
	close()
}

// newSender returns a connection to an address that sends events.
func newSender(protocol, address string, e *events) sender {
	if protocol == http2 {
		return newHTTP2(address, e)
	}
	return newHTTP1(address, e)
}

// http1Sender writes requests that it made before, with another ID and signature
// patched in: it costs as little as possible of the machine that is shared with
// what is measured.
type http1Sender struct {
	address     string
	events      *events
	request     []byte // head and body
	body        []byte // the end of request
	signatureAt int
	conn        net.Conn
	reader      *bufio.Reader
}

func newHTTP1(address string, e *events) *http1Sender {
	var head bytes.Buffer
	fmt.Fprintf(&head, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: BuzzBip\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-BuzzBip-Signature: ",
		path, address, len(e.body))
	s := &http1Sender{address: address, events: e, signatureAt: head.Len()}
	head.Write(make([]byte, len(signature{})))
	head.WriteString("\r\n\r\n")
	start := head.Len()
	head.Write(e.body)
	s.request = head.Bytes()
	s.body = s.request[start:]
	return s
}

func (s *http1Sender) send(i int, sig signature) (answer, error) {
	if s.conn == nil {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			return answer{}, err
		}
		s.conn = conn
		if s.reader == nil {
			s.reader = bufio.NewReader(conn)
		} else {
			s.reader.Reset(conn)
		}
	}
	s.events.patchID(s.body, i)
	copy(s.request[s.signatureAt:], sig[:])
	_ = s.conn.SetDeadline(time.Now().Add(requestTimeout))
	if _, err := s.conn.Write(s.request); err != nil {
		return answer{}, err
	}
	res, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return answer{}, err
	}
	if res.Close {
		s.close()
	}
	return answer{res.StatusCode, res.Header.Get("X-BuzzBip-Result")}, nil
}

func (s *http1Sender) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// http2Sender is a connection with one stream at a time.
type http2Sender struct {
	url       string
	events    *events
	body      []byte
	transport *http.Transport
}

func newHTTP2(address string, e *events) *http2Sender {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &http2Sender{url: "http://" + address + path, events: e, body: bytes.Clone(e.body), transport: transport}
}

func (s *http2Sender) send(i int, sig signature) (answer, error) {
	s.events.patchID(s.body, i)
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(s.body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("User-Agent", "BuzzBip")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-BuzzBip-Signature", string(sig[:]))
	res, err := s.transport.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return answer{}, err
	}
	return answer{res.StatusCode, res.Header.Get("X-BuzzBip-Result")}, nil
}

func (s *http2Sender) close() { s.transport.CloseIdleConnections() }
