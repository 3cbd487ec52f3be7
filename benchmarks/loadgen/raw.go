package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"
)

const acceptV2 = "application/vnd.x.restic.rest.v2"

// Bodies up to this length leave with their head in one write.
const joined = 64 << 10

// raw speaks HTTP/1.1 by hand on one connection: a third of what net/http costs the client.
type raw struct {
	options
	url     *url.URL
	conn    net.Conn
	in      *bufio.Reader
	out     []byte
	scratch []byte
	fixed   string // the header lines of every request
}

func newRaw(o options) *raw {
	u, err := url.Parse(o.base)
	if err != nil {
		refuse(err.Error())
	}
	s := &raw{options: o, url: u, in: bufio.NewReaderSize(nil, 64<<10), scratch: make([]byte, 256<<10)}
	s.fixed = " HTTP/1.1\r\nHost: " + u.Host + "\r\nUser-Agent: loadgen\r\nAccept: " + acceptV2 + "\r\n"
	if o.user != "" {
		s.fixed += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(o.user)) + "\r\n"
	}
	return s
}

func (s *raw) close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *raw) connect() error {
	conn, err := net.Dial("tcp", s.url.Host)
	if err != nil {
		return err
	}
	if s.url.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	s.conn = conn
	s.in.Reset(conn)
	return nil
}

func (s *raw) do(r request) (answer, error) {
	start := time.Now()
	got, err := s.exchange(r, start)
	if err != nil {
		s.close()
	}
	return got, err
}

func (s *raw) exchange(r request, start time.Time) (answer, error) {
	if s.conn == nil {
		if err := s.connect(); err != nil {
			return answer{}, err
		}
	}
	if err := s.send(r); err != nil {
		return answer{}, err
	}
	got, length, keep, err := s.head(r.method)
	if err != nil {
		return got, err
	}
	got.first = time.Since(start)
	var body io.Reader = s.in
	left := length
	if length < 0 {
		body = httputil.NewChunkedReader(s.in)
		left = 1 << 62
	}
	for left > 0 {
		n, err := body.Read(s.scratch[:min(left, int64(len(s.scratch)))])
		if n > 0 && got.body == 0 {
			got.first = time.Since(start)
		}
		got.body += int64(n)
		left -= int64(n)
		if n > 0 && r.sink != nil && got.status < 300 {
			if err := r.sink(s.scratch[:n]); err != nil {
				return got, err
			}
		}
		if err == io.EOF && length < 0 {
			// The chunked reader leaves the line behind the last chunk.
			if _, err := s.in.Discard(2); err != nil {
				return got, err
			}
			break
		}
		if err != nil {
			return got, err
		}
	}
	if !keep {
		s.close()
	}
	return got, nil
}

func (s *raw) send(r request) error {
	b := append(s.out[:0], r.method...)
	b = append(b, ' ')
	b = append(b, s.url.Path...)
	b = append(b, r.path...)
	b = append(b, s.fixed...)
	if r.length > 0 {
		b = append(b, "Range: bytes="...)
		b = strconv.AppendInt(b, int64(r.from), 10)
		b = append(b, '-')
		b = strconv.AppendInt(b, int64(r.from+r.length-1), 10)
		b = append(b, "\r\n"...)
	}
	if r.body != nil {
		b = append(b, "Content-Type: application/octet-stream\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(r.body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if len(r.body) <= joined {
		b = append(b, r.body...)
	}
	s.out = b
	if _, err := s.conn.Write(b); err != nil {
		return err
	}
	if len(r.body) > joined {
		if _, err := s.conn.Write(r.body); err != nil {
			return err
		}
	}
	return nil
}

// head reads an answer's head. Its length is -1 where the body comes in chunks.
func (s *raw) head(method string) (got answer, length int64, keep bool, err error) {
	line, err := s.in.ReadSlice('\n')
	if err != nil {
		return got, 0, false, err
	}
	if len(line) < 13 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return got, 0, false, fmt.Errorf("no HTTP: %q", line)
	}
	got.proto = string(line[:8])
	if got.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return got, 0, false, err
	}
	got.declared, keep = -1, true
	chunked := false
	for {
		if line, err = s.in.ReadSlice('\n'); err != nil {
			return got, 0, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if got.declared, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return got, 0, false, err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("connection")):
			keep = !bytes.EqualFold(value, []byte("close"))
		}
	}
	switch {
	case method == "HEAD" || got.status == 204 || got.status == 304:
		return got, 0, keep, nil
	case chunked:
		return got, -1, keep, nil
	case got.declared < 0:
		return got, 0, false, errors.New("neither a length nor chunks")
	}
	return got, got.declared, keep, nil
}
