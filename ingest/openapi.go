package ingest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"millrace"
)

// apiVersion is the version of the HTTP API, not that of the program.
const apiVersion = "1.0.0"

const apiDescription = `Millrace takes tasks in, runs each conversation's tasks in order, and tells what became of them.

A task answered 202 is stored. Any other answer means that it is not known to be stored; sending it again under the same
Idempotency-Key is safe. Every error is a problem document (RFC 9457) whose type is one of:

`

// api builds the routes: huma holds the OpenAPI document and binds paths, while
// endpoints read and write by themselves, because payloads are carried byte for
// byte and errors say more than a schema's validation does.
type api struct {
	s    *Server
	huma huma.API
	mux  *http.ServeMux
}

// routes returns the handler of all routes.
func (s *Server) routes() (http.Handler, error) {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[json.RawMessage](), reflect.TypeFor[any]())
	mux := http.NewServeMux()
	a := &api{s: s, mux: mux, huma: humago.New(mux, huma.Config{OpenAPI: &huma.OpenAPI{
		OpenAPI:    "3.1.0",
		Info:       &huma.Info{Title: "Millrace", Version: apiVersion, Description: apiDescription + problemTable()},
		Components: &huma.Components{Schemas: registry},
		Tags: []*huma.Tag{
			{Name: "tasks", Description: "Send tasks and ask what became of them."},
			{Name: "conversations", Description: "Read what turns have left, and erase it."},
			{Name: "dead letters", Description: "See the tasks that were given up on."},
		},
	}})}
	a.operations()
	for name, schema := range registry.Map() {
		if name != taskSchemaName {
			schema.AdditionalProperties = true // answers may gain members
			for _, member := range schema.Properties {
				member.Nullable = false // empty lists are written as such
			}
		}
	}
	if err := a.documents(); err != nil {
		return nil, err
	}
	return s.fallback(mux), nil
}

// documents serves the OpenAPI document and the page that shows it.
func (a *api) documents() error {
	asJSON, err := json.MarshalIndent(a.huma.OpenAPI(), "", "  ")
	if err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	asYAML, err := a.huma.OpenAPI().YAML()
	if err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	a.static("/openapi.json", "application/openapi+json", asJSON)
	a.static("/openapi.yaml", "application/openapi+yaml", asYAML)
	a.static("/docs", "text/html; charset=utf-8", docsPage)
	return nil
}

func (a *api) static(path, contentType string, content []byte) {
	a.mux.HandleFunc("GET "+path, a.s.serve("GET "+path, func(w http.ResponseWriter, _ *http.Request) *Problem {
		a.s.within(w, func() {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Content-Security-Policy", docsPolicy)
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write(content) // the client is gone if this fails
		})
		return nil
	}))
}

func (a *api) route(op huma.Operation, problems []*problemKind, e endpoint) {
	a.document(op, problems, op.Path, e)
}

// document is route for an operation whose documented path the mux cannot take:
// it serves another one that includes it.
func (a *api) document(op huma.Operation, problems []*problemKind, path string, e endpoint) {
	a.problems(&op, problems)
	a.huma.OpenAPI().AddOperation(&op)
	serve := a.s.serve(op.Method+" "+op.Path, e)
	op.Path = path
	a.huma.Adapter().Handle(&op, func(ctx huma.Context) {
		r, w := humago.Unwrap(ctx)
		serve(w, r)
	})
}

// problems documents the errors of an operation, by status.
func (a *api) problems(op *huma.Operation, problems []*problemKind) {
	byStatus := make(map[int][]string)
	for _, k := range slices.Concat(problems, []*problemKind{foreignHost, foreignOrigin, internalError}) {
		byStatus[k.status] = append(byStatus[k.status], k.title+" (`"+k.uri()+"`)")
	}
	for status, titles := range byStatus {
		r := &huma.Response{
			Description: strings.Join(titles, "; ") + ".",
			Headers:     map[string]*huma.Param{headerRequestID: headerParam("The id of the request")},
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: a.schema(reflect.TypeFor[Problem]())}},
		}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			r.Headers["Retry-After"] = headerParam("Seconds after which to try again")
		}
		op.Responses[itoa(status)] = r
	}
}

func (a *api) schema(t reflect.Type) *huma.Schema {
	return a.huma.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

func (a *api) answer(description, mediaType string, schema *huma.Schema) *huma.Response {
	return &huma.Response{
		Description: description,
		Headers:     map[string]*huma.Param{headerRequestID: headerParam("The id of the request")},
		Content:     map[string]*huma.MediaType{mediaType: {Schema: schema}},
	}
}

func headerParam(description string) *huma.Param {
	return &huma.Param{Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
}

var (
	bodyProblems   = []*problemKind{emptyBody, malformedJSON, badEncoding, incompleteBody, invalidParameter, invalidHeader, bodyTimeout, bodyTooLarge, unsupportedMediaType, unsupportedEncoding}
	taskProblems   = []*problemKind{payloadTooLarge, tooDeep, unknownField, missingField, invalidField, unknownPriority, invalidTask, idempotencyKeyReused, overloaded, classificationFailed, kafkaUnavailable, scheduleUnavailable, storeNotConfigured}
	readerProblems = []*problemKind{invalidParameter, storeNotConfigured, storeUnavailable}
)

func (a *api) operations() {
	requestID := &huma.Param{
		Name: headerRequestID, In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: new(maxRequestID)},
		Description: "An id of your own for the request; it comes back in the answer and in problems.",
	}
	idempotencyKey := &huma.Param{
		Name: headerIdempotencyKey, In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: new(maxIdempotencyKey)},
		Description: "Makes repeats safe: the same tenant and key give the same task id, and a task is done once per id. Another task under a key used within the last 24 hours is refused with 422: conversation, type, payload (byte for byte), priority, attributes, max_attempts and on_busy are compared, deadline and run_at are not. In a batch, each line's id follows from the key and its number.",
	}
	encoding := &huma.Param{
		Name: "Content-Encoding", In: "header", Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"gzip", "zstd", "identity"}},
		Description: "How the body is compressed.",
	}
	taskRef := a.taskSchema()

	submitted := a.answer("The task is stored and will run.", millrace.JSON, a.schema(reflect.TypeFor[Accepted]()))
	submitted.Headers["Location"] = headerParam("Where to ask what became of the task")
	a.route(huma.Operation{
		Method: http.MethodPost, Path: "/v1/tasks", OperationID: "submit-task", Tags: []string{"tasks"},
		Summary:     "Send a task",
		Description: "Answers once all in-sync replicas have acknowledged the task, or, if it is held back until its `run_at`, once PostgreSQL has committed it.",
		Parameters:  []*huma.Param{idempotencyKey, encoding, requestID},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{millrace.JSON: {Schema: taskRef, Example: exampleTask}}},
		Responses:   map[string]*huma.Response{"202": submitted},
	}, slices.Concat(bodyProblems, taskProblems, []*problemKind{shuttingDown}), a.s.submit)

	result := a.schema(reflect.TypeFor[BatchResult]())
	lines := func(description string) *huma.Response {
		r := a.answer(description, mediaNDJSON, result)
		r.Content[millrace.JSON] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeArray, Items: result}}
		return r
	}
	a.route(huma.Operation{
		Method: http.MethodPost, Path: "/v1/tasks:batch", OperationID: "submit-batch", Tags: []string{"tasks"},
		Summary: "Send many tasks",
		Description: "Takes one task a line (NDJSON) and answers one result a line, in the same order, or a JSON array to `Accept: application/json`. " +
			"A line that is wrong keeps no other from being accepted. A line refused for a passing reason (429, 503) takes the later lines of its conversation with it, so that sending the refused lines again in their order keeps it.",
		Parameters:  []*huma.Param{idempotencyKey, encoding, requestID},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{mediaNDJSON: {Schema: taskRef}}},
		Responses: map[string]*huma.Response{
			"202": lines("Every line was accepted."),
			"200": lines("At least one line was not accepted, or none: look at each line's status."),
		},
	}, slices.Concat(bodyProblems, []*problemKind{tooManyLines, shuttingDown}), a.s.submitBatch)

	id := func(description string, most int) *huma.Param {
		return &huma.Param{Name: "id", In: "path", Required: true, Description: description, Schema: &huma.Schema{Type: huma.TypeString, MinLength: new(1), MaxLength: new(most)}}
	}
	wait := &huma.Param{
		Name: "wait", In: "query", Schema: &huma.Schema{Type: huma.TypeString, Examples: []any{"30s"}}, Example: "30s",
		Description: "Wait up to so long for the task to finish: a duration such as 30s or 1m, at most 60s.",
	}
	a.route(huma.Operation{
		Method: http.MethodGet, Path: "/v1/tasks/{id}", OperationID: "get-task", Tags: []string{"tasks"},
		Summary: "Ask what became of a task", Parameters: []*huma.Param{id("The task's id", millrace.MaxIDBytes), wait, requestID},
		Responses: map[string]*huma.Response{"200": a.answer("What is known of the task.", millrace.JSON, a.schema(reflect.TypeFor[millrace.TaskResult]()))},
	}, slices.Concat(readerProblems, []*problemKind{taskNotFound, tooManyWaiters}), a.s.getTask)

	cancelled := a.schema(reflect.TypeFor[millrace.TaskResult]())
	a.document(huma.Operation{
		Method: http.MethodPost, Path: "/v1/tasks/{id}" + cancelSuffix, OperationID: "cancel-task", Tags: []string{"tasks"},
		Summary: "Cancel a task",
		Description: "Ends a task that has not ended: one that waits never runs, and of one that runs nothing is kept. What is committed first wins, so that the task is either cancelled or done, never both. " +
			"Cancelling a cancelled task again changes nothing. The result event is `task.cancelled`.",
		Parameters: []*huma.Param{id("The task's id", millrace.MaxIDBytes), requestID},
		Responses: map[string]*huma.Response{
			"200": a.answer("The task is cancelled.", millrace.JSON, cancelled),
			"202": a.answer("Nothing is known of the task yet. If one comes under this id, it does not run.", millrace.JSON, cancelled),
		},
	}, slices.Concat(readerProblems, []*problemKind{taskEnded, tooManyCancels}), "/v1/tasks/{call}", a.s.postTask)

	after := &huma.Param{Name: "after", In: "query", Schema: intSchema(0, maxSequence), Description: "Begin after this one; next_after of the page before."}
	limit := &huma.Param{Name: "limit", In: "query", Schema: intSchema(1, maxPage), Description: fmt.Sprintf("At most so many, %d by default.", defaultPage)}
	a.route(huma.Operation{
		Method: http.MethodGet, Path: "/v1/conversations/{id}", OperationID: "get-conversation", Tags: []string{"conversations"},
		Summary: "Read a conversation", Parameters: []*huma.Param{id("The conversation's id", millrace.MaxConversationBytes), after, limit, requestID},
		Responses: map[string]*huma.Response{"200": a.answer("The state and one page of the history.", millrace.JSON, a.schema(reflect.TypeFor[ConversationPage]()))},
	}, slices.Concat(readerProblems, []*problemKind{conversationNotFound}), a.s.getConversation)

	erasure := a.schema(reflect.TypeFor[millrace.Erasure]())
	a.route(huma.Operation{
		Method: http.MethodDelete, Path: "/v1/conversations/{id}", OperationID: "erase-conversation", Tags: []string{"conversations"},
		Summary: "Erase a conversation",
		Description: "Erases history and state, the results and errors of the conversation's tasks, its steps, its dead letters and the tasks that are held back until their run_at. Once it has been answered, nobody reads the conversation any more, " +
			"and a turn that had read it begins anew on an empty one. What is left is that there was a conversation of this id, and that its tasks have ended. " +
			"Tasks that wait are done later, on the empty conversation: cancel them first if they are not to be. Messages are numbered on from where the erased ones ended. " +
			"What Kafka has of the conversation (tasks, results, events, copies of dead letters) goes when the retention of its topics is over. Erasing what is erased changes nothing.",
		Parameters: []*huma.Param{id("The conversation's id", millrace.MaxConversationBytes), requestID},
		Responses: map[string]*huma.Response{
			"204": {Description: "The conversation is erased, and nothing of it is left to delete.", Headers: map[string]*huma.Param{headerRequestID: headerParam("The id of the request")}},
			"202": a.answer("The conversation is erased; workers and relays delete what is left of it in the background. The same request tells whether they have done so.", millrace.JSON, erasure),
		},
	}, slices.Concat(readerProblems, []*problemKind{conversationNotFound}), a.s.deleteConversation)

	a.route(huma.Operation{
		Method: http.MethodGet, Path: "/v1/dead-letters", OperationID: "list-dead-letters", Tags: []string{"dead letters"},
		Summary: "List dead letters", Parameters: []*huma.Param{after, limit, requestID},
		Responses: map[string]*huma.Response{"200": a.answer("One page of dead letters.", millrace.JSON, a.schema(reflect.TypeFor[DeadLetterPage]()))},
	}, readerProblems, a.s.getDeadLetters)
}

func intSchema(low, high float64) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(low), Maximum: new(high)}
}

const taskSchemaName = "Task"

var exampleTask = json.RawMessage(`{"conversation":"c-42","type":"chat.message","payload":{"text":"Where is my parcel?"},"priority":"high"}`)

// taskSchema describes the body that [taskDecoder] takes.
func (a *api) taskSchema() *huma.Schema {
	text := func(description string, most int) *huma.Schema {
		return &huma.Schema{Type: huma.TypeString, Nullable: true, MaxLength: new(most), Description: description}
	}
	taskType := text("What kind of task it is; selects routing, timeouts and rules.", millrace.MaxTypeBytes)
	taskType.Nullable, taskType.MinLength = false, new(1)
	conversation := text("Orders tasks and owns their state. Null: a task without a conversation and without order.", millrace.MaxConversationBytes)
	conversation.MinLength = new(1)
	priority := text("The priority that you wish for; rules may lower it. One of "+joinPriorities(a.s.cfg.Priorities)+".", 32)
	for _, p := range a.s.cfg.Priorities {
		priority.Enum = append(priority.Enum, string(p))
	}
	priority.Enum, priority.MaxLength = append(priority.Enum, nil), nil
	deadline := text("When running the task stops making sense: an RFC 3339 time in the future.", 64)
	deadline.Format, deadline.MaxLength = "date-time", nil
	runAt := text(fmt.Sprintf("When to release the task to the workers: an RFC 3339 time, at most %d days ahead. Until then it is held back in PostgreSQL, where it can be asked for and cancelled. "+
		"Tasks of a conversation are released in the order of their times, those of one time in the order in which they were sent. A time that has passed means now.", MaxRunAhead/(24*time.Hour)), 64)
	runAt.Format, runAt.MaxLength = "date-time", nil
	attempts := intSchema(1, millrace.MaxAttempts)
	attempts.Nullable, attempts.Description = true, "How often the task is tried at most. Default: the worker's."
	onBusy := &huma.Schema{
		Type: huma.TypeString, Nullable: true,
		Enum: []any{string(millrace.BusyEnqueue), string(millrace.BusyCoalesce), string(millrace.BusyInterrupt), string(millrace.BusyReject), nil},
		Description: "What happens if another task of the conversation runs or waits when this one comes to its worker: it waits for its turn (`enqueue`, the default); " +
			"it waits, and one turn answers it together with those that wait next to it and say the same (`coalesce`); " +
			"it waits, and the one that runs is ended as `cancelled` with what it has answered so far (`interrupt`); or it ends as `failed` at once (`reject`).",
	}
	value := text("A value.", millrace.MaxAttributeBytes)
	value.Nullable, value.MinLength = false, new(1)

	schema := &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: false,
		Required: slices.Clone(taskFields[:3]),
		Properties: map[string]*huma.Schema{
			fieldConversation: conversation,
			fieldType:         taskType,
			fieldPayload:      {Description: fmt.Sprintf("The task's input: any JSON value of at most %d bytes, carried as it is.", a.s.cfg.MaxPayloadBytes)},
			fieldPriority:     priority,
			fieldTenant:       text("On whose behalf the task runs.", millrace.MaxTenantBytes),
			fieldDeadline:     deadline,
			fieldRunAt:        runAt,
			fieldMaxAttempts:  attempts,
			fieldOnBusy:       onBusy,
			fieldAttributes: {
				Type: huma.TypeObject, Nullable: true, MaxProperties: new(millrace.MaxAttributes), AdditionalProperties: value,
				Description: "Further facts for rules and handlers: names of 1 to 20 lower-case letters and digits.",
			},
		},
	}
	a.huma.OpenAPI().Components.Schemas.Map()[taskSchemaName] = schema
	return &huma.Schema{Ref: "#/components/schemas/" + taskSchemaName}
}

// problemTable lists all problem types in Markdown.
func problemTable() string {
	var b strings.Builder
	b.WriteString("| type | status | meaning |\n|---|---|---|\n")
	for _, t := range ProblemTypes() {
		fmt.Fprintf(&b, "| `%s` | %d | %s. %s |\n", t.Type, t.Status, t.Title, t.Hint)
	}
	return b.String()
}
