package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/ingest"
)

// Every bad input gets its problem, says where it is, and harms nothing: the
// next good task is accepted.
func TestBadInputs(t *testing.T) {
	f := start(t, nil)
	const good = `{"conversation":"c","type":"t","payload":1}`
	with := func(fields string) string { return `{"conversation":"c","type":"t","payload":1,` + fields + `}` }
	manyAttributes := make([]string, 33)
	for i := range manyAttributes {
		manyAttributes[i] = fmt.Sprintf(`"a%d":"x"`, i)
	}
	type input struct {
		name    string
		body    string
		headers []string // pairs
		path    string   // POST /v1/tasks if empty; GET otherwise, unless method is set
		method  string
		status  int
		problem string
		where   string // part of the detail or the place
	}
	inputs := []input{
		{name: "empty body", body: "", status: 400, problem: "empty-body", where: "empty"},
		{name: "blank body", body: " \n\t ", status: 400, problem: "empty-body", where: "empty"},
		{name: "broken JSON", body: "{\n \"conversation\": \"c\",\n \"type\" \"t\"}", status: 400, problem: "malformed-json", where: "line 3, column 9"},
		{name: "cut JSON", body: `{"conversation":"c"`, status: 400, problem: "malformed-json", where: "line 1, column 20"},
		{name: "two values", body: good + good, status: 400, problem: "malformed-json", where: "after top-level value"},
		{name: "trailing comma", body: `{"conversation":"c",}`, status: 400, problem: "malformed-json", where: "column 21"},
		{name: "not UTF-8", body: "{\"conversation\":\"\xff\"}", status: 400, problem: "malformed-json", where: "UTF-8"},
		{name: "byte order mark", body: "\ufeff" + good, status: 400, problem: "malformed-json", where: "column 1"},
		{name: "UTF-16", body: "{\x00\"\x00c\x00\"\x00", status: 400, problem: "malformed-json", where: "column 2"},
		{name: "an array", body: `[` + good + `]`, status: 422, problem: "invalid-field", where: "want an object, got an array"},
		{name: "a string", body: `"task"`, status: 422, problem: "invalid-field", where: "want an object, got a string"},
		{name: "null", body: `null`, status: 422, problem: "invalid-field", where: "want an object, got null"},
		{name: "no field", body: `{}`, status: 422, problem: "missing-field", where: "#/payload"},
		{name: "no conversation", body: `{"type":"t","payload":1}`, status: 422, problem: "missing-field", where: "send null"},
		{name: "empty conversation", body: `{"conversation":"","type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "#/conversation"},
		{name: "long conversation", body: `{"conversation":"` + strings.Repeat("x", 257) + `","type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "257 bytes, at most 256"},
		{name: "control character", body: `{"conversation":"a\u0000b","type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "control character"},
		{name: "half a surrogate pair", body: `{"conversation":"\ud800","type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "surrogate"},
		{name: "conversation is a number", body: `{"conversation":7,"type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "want a string, got a number"},
		{name: "no type", body: `{"conversation":"c","payload":1}`, status: 422, problem: "missing-field", where: "#/type"},
		{name: "empty type", body: `{"conversation":"c","type":"","payload":1}`, status: 422, problem: "invalid-field", where: "#/type"},
		{name: "null type", body: `{"conversation":"c","type":null,"payload":1}`, status: 422, problem: "missing-field", where: "#/type"},
		{name: "long type", body: `{"conversation":"c","type":"` + strings.Repeat("t", 129) + `","payload":1}`, status: 422, problem: "invalid-field", where: "at most 128"},
		{name: "no payload", body: `{"conversation":"c","type":"t"}`, status: 422, problem: "missing-field", where: "#/payload"},
		{name: "unknown field", body: with(`"paylaod":1`), status: 422, problem: "unknown-field", where: `"paylaod"`},
		{name: "field in other case", body: with(`"Priority":"high"`), status: 422, problem: "unknown-field", where: `"Priority"`},
		{name: "field given twice", body: with(`"type":"u"`), status: 422, problem: "invalid-field", where: "given twice"},
		{name: "unknown priority", body: with(`"priority":"urgent"`), status: 422, problem: "unknown-priority", where: "high, normal, batch"},
		{name: "priority is a number", body: with(`"priority":1`), status: 422, problem: "invalid-field", where: "#/priority"},
		{name: "long tenant", body: with(`"tenant":"` + strings.Repeat("t", 129) + `"`), status: 422, problem: "invalid-field", where: "#/tenant"},
		{name: "deadline is no time", body: with(`"deadline":"tomorrow"`), status: 422, problem: "invalid-field", where: "RFC 3339"},
		{name: "deadline has passed", body: with(`"deadline":"2001-01-01T00:00:00Z"`), status: 422, problem: "invalid-field", where: "has passed"},
		{name: "deadline beyond time", body: with(`"deadline":"9999-12-31T23:59:59-12:00"`), status: 422, problem: "invalid-field", where: "RFC 3339"},
		{name: "no attempts", body: with(`"max_attempts":0`), status: 422, problem: "invalid-field", where: "from 1 to 100"},
		{name: "many attempts", body: with(`"max_attempts":101`), status: 422, problem: "invalid-field", where: "from 1 to 100"},
		{name: "unknown busy policy", body: with(`"on_busy":"panic"`), status: 422, problem: "invalid-field", where: "enqueue, coalesce, interrupt or reject"},
		{name: "empty busy policy", body: with(`"on_busy":""`), status: 422, problem: "invalid-field", where: "enqueue, coalesce, interrupt or reject"},
		{name: "busy policy without a conversation", body: `{"on_busy":"reject","conversation":null,"type":"t","payload":1}`, status: 422, problem: "invalid-field", where: "without a conversation"},
		{name: "half an attempt", body: with(`"max_attempts":1.5`), status: 422, problem: "invalid-field", where: "1.5"},
		{name: "attributes are a list", body: with(`"attributes":["a"]`), status: 422, problem: "invalid-field", where: "want an object of strings"},
		{name: "attribute is a number", body: with(`"attributes":{"a":1}`), status: 422, problem: "invalid-field", where: "#/attributes/a"},
		{name: "attribute name", body: with(`"attributes":{"A/b":"x"}`), status: 422, problem: "invalid-field", where: "#/attributes/A~1b"},
		{name: "attribute of the format", body: with(`"attributes":{"id":"x"}`), status: 422, problem: "invalid-field", where: "taken"},
		{name: "empty attribute", body: with(`"attributes":{"a":""}`), status: 422, problem: "invalid-field", where: "leave the attribute out"},
		{name: "attribute given twice", body: with(`"attributes":{"a":"x","a":"y"}`), status: 422, problem: "invalid-field", where: "given twice"},
		{name: "many attributes", body: with(`"attributes":{` + strings.Join(manyAttributes, ",") + `}`), status: 422, problem: "invalid-field", where: "33 attributes, at most 32"},
		{name: "several errors", body: `{"conversation":7,"payload":1,"x":1}`, status: 422, problem: "invalid-task", where: "#/type"},
		{name: "deep payload", body: with(`"tenant":"t","attributes":` + strings.Repeat("[", 200) + strings.Repeat("]", 200)), status: 422, problem: "too-deep", where: "128 levels"},
		{name: "5 MiB", body: with(`"tenant":"` + strings.Repeat("x", 5<<20) + `"`), status: 413, problem: "body-too-large", where: "at most"},
		{name: "large payload", body: `{"conversation":"c","type":"t","payload":"` + strings.Repeat("x", 1<<20) + `"}`, status: 413, problem: "payload-too-large", where: "#/payload"},
		{name: "no content type", body: good, headers: []string{"Content-Type", ""}, status: 415, problem: "unsupported-media-type", where: "application/json"},
		{name: "form", body: good, headers: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, problem: "unsupported-media-type", where: "application/json"},
		{name: "other charset", body: good, headers: []string{"Content-Type", "application/json; charset=utf-16"}, status: 415, problem: "unsupported-media-type", where: "utf-8"},
		{name: "content type is nonsense", body: good, headers: []string{"Content-Type", ";;"}, status: 415, problem: "unsupported-media-type", where: "application/json"},
		{name: "unknown encoding", body: good, headers: []string{"Content-Encoding", "br"}, status: 415, problem: "unsupported-encoding", where: "gzip or zstd"},
		{name: "not gzip", body: good, headers: []string{"Content-Encoding", "gzip"}, status: 400, problem: "bad-encoding", where: "Content-Encoding"},
		{name: "not zstd", body: good, headers: []string{"Content-Encoding", "zstd"}, status: 400, problem: "bad-encoding", where: "Content-Encoding"},
		{name: "long idempotency key", body: good, headers: []string{"Idempotency-Key", strings.Repeat("k", 256)}, status: 400, problem: "invalid-header", where: "at most 255"},
		{name: "empty idempotency key", body: good, headers: []string{"Idempotency-Key", " "}, status: 400, problem: "invalid-header", where: "empty"},
		{name: "deadline of many digits", body: with(`"deadline":"2001-01-01T00:00:00.` + strings.Repeat("0", 5000) + `Z"`), status: 422, problem: "invalid-field", where: "has passed"},
		{name: "idempotency key not ASCII", body: good, headers: []string{"Idempotency-Key", "schlüssel"}, status: 400, problem: "invalid-header", where: "ASCII"},
		{name: "unknown parameter", path: "/v1/tasks?wiat=1", method: http.MethodPost, body: good, status: 400, problem: "invalid-parameter", where: "wiat"},
		{name: "wrong method", path: "/v1/tasks", method: http.MethodPut, body: good, status: 405, problem: "method-not-allowed", where: "POST"},
		{name: "no such route", path: "/v2/tasks", status: 404, problem: "route-not-found", where: "/v2/tasks"},
		{name: "wait is no duration", path: "/v1/tasks/x?wait=soon", status: 400, problem: "invalid-parameter", where: "wait"},
		{name: "wait too long", path: "/v1/tasks/x?wait=61s", status: 400, problem: "invalid-parameter", where: "1m0s"},
		{name: "negative wait", path: "/v1/tasks/x?wait=-1s", status: 400, problem: "invalid-parameter", where: "wait"},
		{name: "parameter given twice", path: "/v1/tasks/x?wait=1s&wait=2s", status: 400, problem: "invalid-parameter", where: "given twice"},
		{name: "long id", path: "/v1/tasks/" + strings.Repeat("x", 257), status: 400, problem: "invalid-parameter", where: "256"},
		{name: "control character in id", path: "/v1/conversations/a%00b", status: 400, problem: "invalid-parameter", where: "id"},
		{name: "limit out of range", path: "/v1/dead-letters?limit=0", status: 400, problem: "invalid-parameter", where: "limit"},
		{name: "after is no number", path: "/v1/conversations/c?after=x", status: 400, problem: "invalid-parameter", where: "after"},
		{name: "no store", path: "/v1/tasks/x", status: 503, problem: "store-not-configured", where: "MILLRACE_POSTGRES_URL"},
	}
	for i, in := range inputs {
		t.Run(in.name, func(t *testing.T) {
			headers := map[string]string{"Content-Type": "application/json"}
			for i := 0; i+1 < len(in.headers); i += 2 {
				headers[in.headers[i]] = in.headers[i+1]
				if in.headers[i+1] == "" {
					delete(headers, in.headers[i])
				}
			}
			method, path := http.MethodPost, "/v1/tasks"
			if in.path != "" {
				method, path = http.MethodGet, in.path
			}
			if in.method != "" {
				method = in.method
			}
			r := f.do(method, path, strings.NewReader(in.body), headers)
			p := r.problem(t)
			if r.status != in.status || p.Type != "urn:millrace:problem:"+in.problem {
				t.Errorf("status %d %s, want %d %s; detail %q", r.status, p.Type, in.status, in.problem, p.Detail)
			}
			if !strings.Contains(p.Detail, in.where) {
				t.Errorf("detail %q does not say %q", p.Detail, in.where)
			}
			if len(p.Detail) > 2000 {
				t.Errorf("detail has %d bytes", len(p.Detail))
			}
			before := f.ends()
			f.mustSubmit(fmt.Sprintf(`{"conversation":"c","type":"t","payload":%d}`, i))
			if n := f.ends() - before; n != 1 {
				t.Errorf("%d records for the good task after it", n)
			}
		})
	}
	if n := f.ends(); n != int64(len(inputs)) {
		t.Errorf("%d records, want one for each good task, %d", n, len(inputs))
	}
}

func TestSlowBodyTimesOut(t *testing.T) {
	f := start(t, func(c *ingest.Config) { c.BodyTimeout = 50 * time.Millisecond })
	body, write := io.Pipe()
	defer write.Close()
	go func() { _, _ = write.Write([]byte(`{"conversation":`)) }()
	r := f.do(http.MethodPost, "/v1/tasks", body, map[string]string{"Content-Type": "application/json"})
	if p := r.problem(t); r.status != http.StatusRequestTimeout || p.Type != "urn:millrace:problem:body-timeout" {
		t.Errorf("status %d, problem %+v", r.status, p)
	}
}
