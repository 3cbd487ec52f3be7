package main

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// request is what a sender sends.
type request struct {
	method, path string
	body         []byte             // nil: none
	from, length int                // the range; length 0: none
	sink         func([]byte) error // gets the body of a good answer; nil: nobody looks
}

// answer is what of a response is checked and counted.
type answer struct {
	status   int
	body     int64 // bytes that were read
	declared int64 // Content-Length
	proto    string
	first    time.Duration // until the first byte of the body, or of the head where there is none
}

// sender sends one request after the other.
type sender interface {
	do(r request) (answer, error)
	close()
}

// senders are what a phase sends by: one for each of its workers, with fresh connections.
func senders(o options, count int) []sender {
	made := make([]sender, count)
	transport := newTransport(o, count)
	for i := range made {
		if o.mode == "raw" {
			made[i] = newRaw(o)
		} else {
			// One transport for all, as in restic: over HTTP/2 they share a connection.
			made[i] = &standard{o, transport, make([]byte, 256<<10)}
		}
	}
	return made
}

// comparing is a sink that fails at the first byte that is not the wanted one.
func comparing(want []byte) func([]byte) error {
	if want == nil {
		return nil
	}
	return func(p []byte) error {
		if len(p) > len(want) || !bytes.Equal(p, want[:len(p)]) {
			return errors.New("foreign bytes")
		}
		want = want[len(p):]
		return nil
	}
}

// counter is a sink for a list: it looks at its ends and counts its entries, which costs little.
type counter struct {
	opened      bool
	entries     int
	first, last byte
}

func (c *counter) take(p []byte) error {
	if !c.opened {
		c.opened, c.first = true, p[0]
	}
	c.entries += bytes.Count(p, []byte{'{'})
	if trimmed := bytes.TrimRight(p, "\r\n"); len(trimmed) > 0 {
		c.last = trimmed[len(trimmed)-1]
	}
	return nil
}

func (c *counter) check(entries int) error {
	if c.first != '[' || c.last != ']' {
		return fmt.Errorf("no list: it begins with %q and ends with %q", c.first, c.last)
	}
	if entries >= 0 && c.entries != entries {
		return fmt.Errorf("%d entries instead of %d", c.entries, entries)
	}
	return nil
}
