package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace"
)

// The fields of a task's body.
const (
	fieldConversation = "conversation"
	fieldType         = "type"
	fieldPayload      = "payload"
	fieldPriority     = "priority"
	fieldTenant       = "tenant"
	fieldDeadline     = "deadline"
	fieldRunAt        = "run_at"
	fieldMaxAttempts  = "max_attempts"
	fieldOnBusy       = "on_busy"
	fieldAttributes   = "attributes"
)

var taskFields = []string{
	fieldConversation, fieldType, fieldPayload, fieldPriority,
	fieldTenant, fieldDeadline, fieldRunAt, fieldMaxAttempts, fieldOnBusy, fieldAttributes,
}

// maxTaskErrors bounds how many errors of one task are listed.
const maxTaskErrors = 20

func itoa(n int) string { return strconv.Itoa(n) }

// decodedTask is what a sender says of a task.
type decodedTask struct {
	millrace.Task
	// runAt is zero unless it is in the future.
	runAt time.Time
}

// taskDecoder makes tasks of JSON bodies.
type taskDecoder struct {
	priorities []millrace.Priority
	maxPayload int
	maxDepth   int
}

// bodyErrors collects what is wrong with one task.
type bodyErrors struct {
	kinds []*problemKind
	list  []ProblemError
}

func (e *bodyErrors) add(k *problemKind, path []string, format string, args ...any) {
	if len(e.list) >= maxTaskErrors {
		return
	}
	e.kinds = append(e.kinds, k)
	e.list = append(e.list, ProblemError{Type: k.uri(), Pointer: pointer(path...), Detail: fmt.Sprintf(format, args...)})
}

// problem returns nil when there is nothing wrong. Errors of one kind make a
// problem of that kind.
func (e *bodyErrors) problem() *Problem {
	if len(e.list) == 0 {
		return nil
	}
	kind := e.kinds[0]
	if slices.ContainsFunc(e.kinds, func(k *problemKind) bool { return k != kind }) {
		kind = invalidTask
		if slices.Contains(e.kinds, payloadTooLarge) {
			kind = payloadTooLarge
		}
	}
	details := make([]string, len(e.list))
	for i := range e.list {
		details[i] = e.list[i].describe()
	}
	p := kind.problem("%s", strings.Join(details, "; "))
	p.Errors = e.list
	return p
}

// decode returns the task that a body describes: what its sender said, its
// priority being the wish, without id, time and source.
func (d *taskDecoder) decode(body []byte, now time.Time) (decodedTask, *Problem) {
	var t decodedTask
	if len(bytes.TrimSpace(body)) == 0 {
		return t, emptyBody.problem("the body is empty; want a JSON object with %s", strings.Join(taskFields[:3], ", "))
	}
	if e := checkJSON(body, d.maxDepth); e != nil {
		line, column := position(body, e.offset)
		return t, e.kind.at(ProblemError{Pointer: "#", Detail: e.detail, Offset: &e.offset, Line: line, Column: column})
	}
	members, ok := splitObject(body)
	if !ok {
		return t, invalidField.at(ProblemError{Pointer: "#", Detail: "want an object, got " + kindOf(body[skipSpace(body, 0):])})
	}

	var errs bodyErrors
	seen := make(map[string]bool, len(members))
	for _, m := range members {
		path := []string{clip(m.name)}
		if seen[m.name] {
			errs.add(invalidField, path, "given twice")
			continue
		}
		seen[m.name] = true
		d.setField(&t, m, path, now, &errs)
	}
	for _, name := range taskFields[:3] {
		if seen[name] {
			continue
		}
		detail := "missing"
		if name == fieldConversation {
			detail = "missing; send null for a task without a conversation, which then has no order either"
		}
		errs.add(missingField, []string{name}, "%s", detail)
	}
	if t.OnBusy != "" && seen[fieldConversation] && t.Conversation == "" {
		errs.add(invalidField, []string{fieldOnBusy}, "means nothing without a conversation; leave it out")
	}
	if !t.runAt.IsZero() && !t.Deadline.IsZero() && !t.Deadline.After(t.runAt) {
		errs.add(invalidField, []string{fieldDeadline}, "%s is not after %s, before which the task does not run", fieldDeadline, fieldRunAt)
	}
	return t, errs.problem()
}

func (d *taskDecoder) setField(t *decodedTask, m member, path []string, now time.Time, errs *bodyErrors) {
	if !slices.Contains(taskFields, m.name) {
		errs.add(unknownField, path, "unknown field %q; the fields are %s", clip(m.name), strings.Join(taskFields, ", "))
		return
	}
	if m.name == fieldPayload {
		if len(m.value) > d.maxPayload {
			errs.add(payloadTooLarge, path, "%d bytes, at most %d", len(m.value), d.maxPayload)
			return
		}
		t.Payload, t.ContentType = m.value, millrace.JSON
		return
	}
	if isNull(m.value) {
		// Many encoders write null for what is not set; only a type has to be.
		if m.name == fieldType {
			errs.add(missingField, path, "null; want a string")
		}
		return
	}
	if err := d.setValue(t, m, now, errs); err != nil {
		errs.add(invalidField, path, "%v", err)
	}
}

func (d *taskDecoder) setValue(t *decodedTask, m member, now time.Time, errs *bodyErrors) error {
	switch m.name {
	case fieldMaxAttempts:
		if err := json.Unmarshal(m.value, &t.MaxAttempts); err != nil || t.MaxAttempts < 1 || t.MaxAttempts > millrace.MaxAttempts {
			return fmt.Errorf("%s: want a whole number from 1 to %d", clip(string(m.value)), millrace.MaxAttempts)
		}
		return nil
	case fieldAttributes:
		return setAttributes(&t.Task, m.value, errs)
	}

	s, err := textOf(m.value)
	if err != nil {
		return err
	}
	switch m.name {
	case fieldConversation:
		if s == "" {
			return fmt.Errorf("empty; send null for a task without a conversation, which then has no order either")
		}
		t.Conversation = s
		return detailOf(fieldConversation, millrace.ValidateConversation(s))
	case fieldType:
		if s == "" {
			return fmt.Errorf("empty; want the kind of task, such as \"chat.message\"")
		}
		t.Type = s
		return detailOf(fieldType, (&millrace.Task{ID: "-", Type: s}).Validate())
	case fieldTenant:
		t.Tenant = s
		return detailOf(fieldTenant, (&millrace.Task{ID: "-", Tenant: s}).Validate())
	case fieldOnBusy:
		t.OnBusy = millrace.OnBusy(s)
		if t.OnBusy == "" || t.OnBusy.Validate() != nil {
			t.OnBusy = ""
			return fmt.Errorf("%q: want %s, %s, %s or %s", clip(s), millrace.BusyEnqueue, millrace.BusyCoalesce, millrace.BusyInterrupt, millrace.BusyReject)
		}
	case fieldPriority:
		t.Priority = millrace.Priority(s)
		if !slices.Contains(d.priorities, t.Priority) {
			errs.add(unknownPriority, []string{fieldPriority}, "unknown priority %q; want one of %s", clip(s), joinPriorities(d.priorities))
		}
	case fieldDeadline:
		at, err := timeOf(s, now)
		if err != nil {
			return err
		}
		if !at.After(now) {
			return fmt.Errorf("%s has passed; it is %s", clip(s), now.UTC().Format(time.RFC3339))
		}
		t.Deadline = at
	case fieldRunAt:
		at, err := timeOf(s, now)
		if err != nil {
			return err
		}
		if last := now.Add(MaxRunAhead); at.After(last) {
			return fmt.Errorf("%s is more than %d days from now; at the latest %s", clip(s), MaxRunAhead/(24*time.Hour), last.UTC().Format(time.RFC3339))
		}
		if at.After(now) {
			t.runAt = at
		}
	}
	return nil
}

func timeOf(s string, now time.Time) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, s)
	// A year of five digits, reached by an offset, has no RFC 3339 form in UTC.
	if err != nil || at.UTC().Year() > 9999 {
		return at, fmt.Errorf("%q: want an RFC 3339 time, such as %q", clip(s), now.UTC().Add(time.Hour).Format(time.RFC3339))
	}
	return at, nil
}

func setAttributes(t *millrace.Task, raw []byte, errs *bodyErrors) error {
	members, ok := splitObject(raw)
	if !ok {
		return fmt.Errorf("want an object of strings, got %s", kindOf(raw))
	}
	if len(members) > millrace.MaxAttributes {
		return fmt.Errorf("%d attributes, at most %d", len(members), millrace.MaxAttributes)
	}
	t.Attributes = make(map[string]string, len(members))
	for _, m := range members {
		path := []string{fieldAttributes, clip(m.name)}
		value, err := textOf(m.value)
		switch _, twice := t.Attributes[m.name]; {
		case err != nil:
			errs.add(invalidField, path, "%v", err)
		case twice:
			errs.add(invalidField, path, "given twice")
		case value == "":
			errs.add(invalidField, path, "empty; leave the attribute out")
		default:
			t.Attributes[m.name] = value
			if err := millrace.ValidateAttribute(m.name, value); err != nil {
				errs.add(invalidField, path, "%v", clipDetail(err))
			}
		}
	}
	return nil
}

// detailOf strips the name of the field, which the pointer says already.
func detailOf(field string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), field+": "))
}

func clipDetail(err error) string {
	const most = 200
	if s := err.Error(); len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return err.Error()
}

// clip shortens what a sender wrote, for a message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func joinPriorities(ps []millrace.Priority) string {
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}
