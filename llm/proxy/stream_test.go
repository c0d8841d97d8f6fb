package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"millrace/llm/sim"
)

func TestBrokenAnswersAreErrorsAndNotJournaled(t *testing.T) {
	for name, faults := range map[string]sim.Faults{"cut": {Cut: 1}, "garbage": {Garbage: 1}} {
		for _, path := range paths {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s stream %v", name, path, stream), func(t *testing.T) {
					s := newSim(t, sim.Config{Faults: faults})
					w := newWorld(t, s.Handler())
					_, token := w.run()
					r := w.post(path, token, request(stream, "q"))
					if cut := r.err != nil && r.status == 200; !cut && r.status != http.StatusBadGateway {
						t.Errorf("the agent could take this for an answer: %+v", r)
					}
					if len(w.journal.results) != 0 {
						t.Error("it is journaled")
					}
					if err := s.SetFaults(sim.Faults{}); err != nil {
						t.Fatal(err)
					}
					_, token = w.run()
					if r := w.post(path, token, request(stream, "q")); r.status != 200 || r.err != nil {
						t.Errorf("the next run: %+v", r)
					}
				})
			}
		}
	}
}

func TestCutStreamIsAnErrorToTheOfficialClient(t *testing.T) {
	w := newWorld(t, newSim(t, sim.Config{Faults: sim.Faults{Cut: 1}}).Handler())
	_, token := w.run()
	client := w.openAI(token)
	stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams)
	chunks := 0
	for stream.Next() {
		chunks++
	}
	if stream.Err() == nil || chunks == 0 {
		t.Fatalf("%d chunks and error %v", chunks, stream.Err())
	}
}

func TestStreamEndsOnlyOnceItIsJournaled(t *testing.T) {
	for _, path := range paths {
		w := newWorld(t, newSim(t, sim.Config{}).Handler())
		w.journal.err = errors.New("disk full")
		_, token := w.run()
		r := w.post(path, token, request(true, "q"))
		if r.err == nil || strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, "message_stop") {
			t.Errorf("%s: the agent got a whole answer that no journal has: %+v", path, r)
		}
	}
}

func TestErrorInAStreamIsPassedOn(t *testing.T) {
	for path, events := range map[string]string{
		paths[0]: "data: {\"id\":\"x\",\"choices\":[{\"delta\":{}}]}\n\ndata: {\"error\":{\"message\":\"overloaded\"}}\n\n",
		paths[1]: "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"overloaded\"}}\n\n",
	} {
		w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(rw, events)
		}))
		_, token := w.run()
		if r := w.post(path, token, request(true, "q")); !strings.Contains(r.body, "overloaded") || r.err == nil {
			t.Errorf("%s: %+v", path, r)
		}
		if len(w.journal.results) != 0 {
			t.Errorf("%s: it is journaled", path)
		}
	}
}

func TestChunksArriveAsTheyCome(t *testing.T) {
	next := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(rw, "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"%d\"}}]}\n\n", i)
			_ = http.NewResponseController(rw).Flush()
			<-next
		}
		_, _ = io.WriteString(rw, "data: [DONE]") // without its empty line
	}))
	_, token := w.run()
	client := w.openAI(token)
	stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams)
	for i := range 3 {
		if !stream.Next() || stream.Current().Choices[0].Delta.Content != fmt.Sprint(i) {
			t.Fatalf("chunk %d: %+v, %v", i, stream.Current(), stream.Err())
		}
		next <- struct{}{}
	}
	if stream.Next() || stream.Err() != nil {
		t.Fatalf("after the end: %v", stream.Err())
	}
}

func FuzzReadEvent(f *testing.F) {
	f.Add([]byte("data: {}\n\n"))
	f.Add([]byte("event: a\r\ndata: 1\r\ndata: 2\r\n\r\ndata: [DONE]"))
	f.Add([]byte(": comment\n\n\ndata:x"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var all []byte
		r := bufio.NewReader(bytes.NewReader(stream))
		for {
			raw, data, err := readEvent(r)
			if err != nil {
				break
			}
			if len(raw) == 0 || len(data) > len(raw) {
				t.Fatalf("event %q with data %q", raw, data)
			}
			all = append(all, raw...)
		}
		if !bytes.HasPrefix(stream, all) {
			t.Fatalf("read %q from %q", all, stream)
		}
	})
}
