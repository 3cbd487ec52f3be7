package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// standard sends by Go's net/http, as restic does: HTTP/2 over TLS where the server offers it.
type standard struct {
	options
	transport *http.Transport
	scratch   []byte
}

func newTransport(o options, conns int) *http.Transport {
	tr := &http.Transport{MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns, DisableCompression: true,
		WriteBufferSize: 256 << 10, ReadBufferSize: 64 << 10,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: !o.http1}
	if o.http1 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return tr
}

func (s *standard) close() { s.transport.CloseIdleConnections() }

func (s *standard) do(r request) (answer, error) {
	var rd io.Reader
	if r.body != nil {
		rd = bytes.NewReader(r.body)
	}
	req, err := http.NewRequest(r.method, s.base+r.path, rd)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", acceptV2)
	if r.body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if r.length > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.from, r.from+r.length-1))
	}
	if name, password, found := strings.Cut(s.user, ":"); found {
		req.SetBasicAuth(name, password)
	}
	start := time.Now()
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	got := answer{status: resp.StatusCode, declared: resp.ContentLength, proto: resp.Proto, first: time.Since(start)}
	for {
		// Larger pieces than io.Copy takes: net/http's buffer is then passed by.
		n, err := resp.Body.Read(s.scratch)
		if n > 0 && got.body == 0 {
			got.first = time.Since(start)
		}
		got.body += int64(n)
		if n > 0 && r.sink != nil && got.status < 300 {
			if err := r.sink(s.scratch[:n]); err != nil {
				return got, err
			}
		}
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}
