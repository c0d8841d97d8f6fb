package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
)

// What one request of a batch holds at most: enough to keep Kafka busy, and
// little enough to see progress.
const (
	batchLines = 1000
	batchBytes = 8 << 20
	// maxLine is above what the API takes, so that the API says what is too long.
	maxLine = 4 << 20
)

// batchSender sends tasks line by line.
type batchSender struct {
	c    *cli
	api  *api
	key  string
	wait bool

	chunk  int // from 1
	failed int
	sent   []string
}

// line is a task of the input.
type line struct {
	number int
	body   []byte
}

// send sends all of in and prints what became of each line: its id or result on
// the output, errors beside it.
func (b *batchSender) send(ctx context.Context, in io.Reader) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 64<<10), maxLine)
	var (
		chunk []line
		size  int
	)
	flush := func() error {
		err := b.sendChunk(ctx, chunk)
		chunk, size = chunk[:0], 0
		return err
	}
	number := 0
	for scanner.Scan() {
		number++
		body := bytes.TrimSpace(scanner.Bytes())
		if len(body) == 0 {
			continue
		}
		if len(chunk) == batchLines || size+len(body) > batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		chunk = append(chunk, line{number, bytes.Clone(body)})
		size += len(body)
	}
	if err := scanner.Err(); err != nil {
		return errors.Join(flush(), fmt.Errorf("read line %d: %w", number+1, err))
	}
	if err := flush(); err != nil {
		return err
	}
	for _, id := range b.sent {
		if err := b.c.printResult(ctx, b.api, id); errors.Is(err, errTaskFailed) {
			b.failed++
		} else if err != nil {
			return err
		}
	}
	if b.failed > 0 {
		return fmt.Errorf("%d of %d tasks failed", b.failed, number)
	}
	return nil
}

// sendChunk sends lines, those that were refused again and again until they are
// taken. The API refuses later tasks of a conversation along with an earlier
// one, so that sending again keeps their order.
func (b *batchSender) sendChunk(ctx context.Context, lines []line) error {
	if len(lines) == 0 {
		return nil
	}
	b.chunk++
	pending := slices.Clone(lines)
	for len(pending) > 0 {
		// The API derives ids from the key and the line within the request. With a
		// key a chunk is therefore sent as a whole: the ids stay what they were, and
		// what has been taken already is the same task.
		request, key := pending, ""
		if b.key != "" {
			request, key = lines, fmt.Sprintf("%s/%d", b.key, b.chunk)
		}
		header, answer, err := b.api.do(ctx, http.MethodPost, "/v1/tasks:batch", ndjson, key, join(request))
		if after, again := refused(err); again {
			if err := pause(ctx, after); err != nil {
				return b.unsent(pending, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("lines %d to %d: %w", pending[0].number, pending[len(pending)-1].number, err)
		}
		if pending, err = b.take(request, pending, answer); err != nil {
			return err
		}
		if len(pending) > 0 {
			if err := pause(ctx, retryAfter(header)); err != nil {
				return b.unsent(pending, err)
			}
		}
	}
	return nil
}

func (b *batchSender) unsent(pending []line, err error) error {
	return fmt.Errorf("%d lines from line %d on were not sent: %w", len(pending), pending[0].number, err)
}

func join(lines []line) []byte {
	var body bytes.Buffer
	for _, l := range lines {
		body.Write(l.body)
		body.WriteByte('\n')
	}
	return body.Bytes()
}

// take reads the answer to a request, prints what became of the pending lines
// and returns those to send again.
func (b *batchSender) take(request, pending []line, answer []byte) (again []line, err error) {
	decoder := json.NewDecoder(bytes.NewReader(answer))
	for _, l := range request {
		var result struct {
			Status int      `json:"status"`
			TaskID string   `json:"task_id"`
			Error  *problem `json:"error"`
		}
		if err := decoder.Decode(&result); err != nil {
			return nil, fmt.Errorf("the API said nothing of line %d and those after it; they may have been taken or not: %w", l.number, err)
		}
		if len(pending) == 0 || pending[0].number != l.number {
			continue // it was settled before
		}
		pending = pending[1:]
		switch {
		case result.Status == http.StatusTooManyRequests:
			again = append(again, l)
		case result.TaskID == "":
			b.failed++
			if result.Error == nil {
				result.Error = &problem{Status: result.Status}
			}
			b.c.complain("line %d: %v", l.number, result.Error)
		case b.wait:
			b.sent = append(b.sent, result.TaskID)
		default:
			if _, err := fmt.Fprintln(b.c.out, result.TaskID); err != nil {
				return nil, err
			}
		}
	}
	return again, nil
}
