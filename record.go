package millrace

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // UUID version 5 is defined over SHA-1 (RFC 9562); nothing secret rests on it.
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Record is a Kafka record, free of any client library. A nil Key or Value is
// a null, an empty one is not.
type Record struct {
	Topic     string
	TopicID   [16]byte
	Partition int32
	Offset    int64
	Timestamp time.Time
	Key       []byte
	Value     []byte
	Headers   []Header
}

// The record format is CloudEvents 1.0 in Kafka binary mode: attributes travel
// as headers with the prefix "ce_", the payload is the value.
const (
	headerPrefix      = "ce_"
	headerSpecVersion = "ce_specversion"
	headerID          = "ce_id"
	headerSource      = "ce_source"
	headerType        = "ce_type"
	headerTime        = "ce_time"
	headerTenant      = "ce_tenant"
	headerDeadline    = "ce_deadline"
	headerMaxAttempts = "ce_maxattempts"
	headerOnBusy      = "ce_onbusy"
	headerRedrive     = "ce_redrive"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"

	specVersion = "1.0"
)

// JSON is the media type of JSON payloads.
const JSON = "application/json"

func reservedAttribute(name string) bool {
	switch headerPrefix + name {
	case headerSpecVersion, headerID, headerSource, headerType, headerTime,
		headerTenant, headerDeadline, headerMaxAttempts, headerOnBusy, headerRedrive:
		return true
	}
	// Attributes of CloudEvents itself and of its documented extensions.
	switch name {
	case "datacontenttype", "dataschema", "subject", "data", "partitionkey", "traceparent", "tracestate":
		return true
	}
	return false
}

// The reasons why a record cannot be a task; they are the machine-readable
// part of a dead letter.
const (
	ReasonNullValue     = "null_value"
	ReasonInvalidKey    = "invalid_key"
	ReasonInvalidHeader = "invalid_header"
	ReasonInvalidJSON   = "invalid_json"
)

// RecordError says why a record cannot be a task.
type RecordError struct {
	// Reason is one of the Reason constants.
	Reason string
	// Detail says what was wrong, for people.
	Detail string
}

func (e *RecordError) Error() string { return e.Reason + ": " + e.Detail }

// Record encodes t. The caller sets the topic: it follows from the priority.
func (t *Task) Record() (Record, error) {
	if err := t.Validate(); err != nil {
		return Record{}, fmt.Errorf("encode task: %w", err)
	}
	r := Record{Value: t.Payload, Timestamp: t.Time}
	if r.Value == nil {
		r.Value = []byte{} // a null value would be a dead letter
	}
	if t.Conversation != "" {
		r.Key = []byte(t.Conversation)
	}
	add := func(key, value string) {
		if value != "" {
			r.Headers = append(r.Headers, Header{Key: key, Value: []byte(value)})
		}
	}
	add(headerSpecVersion, specVersion)
	add(headerID, t.ID)
	add(headerSource, t.Source)
	add(headerType, t.Type)
	if !t.Time.IsZero() {
		add(headerTime, t.Time.UTC().Format(time.RFC3339Nano))
	}
	add(headerTenant, t.Tenant)
	if !t.Deadline.IsZero() {
		add(headerDeadline, t.Deadline.UTC().Format(time.RFC3339Nano))
	}
	if t.MaxAttempts > 0 {
		add(headerMaxAttempts, strconv.Itoa(t.MaxAttempts))
	}
	add(headerOnBusy, string(t.OnBusy))
	if t.Redrive > 0 {
		add(headerRedrive, strconv.Itoa(t.Redrive))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Attributes)) {
		add(headerPrefix+name, t.Attributes[name])
	}
	add(headerContentType, t.ContentType)
	add(headerTraceParent, t.TraceParent)
	add(headerTraceState, t.TraceState)
	return r, nil
}

// TaskFromRecord decodes a record of any producer. It is tolerant: a bare
// record is a task of type [DefaultType] whose id follows from where the record
// lies. The error is always a [*RecordError]; the returned task then still
// carries an id, so that the dead letter has one.
func TaskFromRecord(r Record) (Task, error) {
	t, err := decodeRecord(r)
	if t.ID == "" {
		t.ID = DerivedID(r.TopicID, r.Partition, r.Offset)
	}
	return t, err
}

func decodeRecord(r Record) (Task, error) {
	t := Task{Type: DefaultType, Time: r.Timestamp, Payload: r.Value}
	if r.Value == nil {
		return t, &RecordError{Reason: ReasonNullValue, Detail: "a record without a value carries no task"}
	}
	if err := ValidateConversation(string(r.Key)); err != nil {
		return t, &RecordError{Reason: ReasonInvalidKey, Detail: err.Error()}
	}
	t.Conversation = string(r.Key)
	for _, h := range r.Headers {
		if err := t.setHeader(h.Key, string(h.Value)); err != nil {
			return t, &RecordError{Reason: ReasonInvalidHeader, Detail: fmt.Sprintf("%s: %v", h.Key, err)}
		}
	}
	if len(t.Attributes) > MaxAttributes {
		return t, &RecordError{Reason: ReasonInvalidHeader, Detail: fmt.Sprintf("%d extension headers, at most %d", len(t.Attributes), MaxAttributes)}
	}
	if IsJSON(t.ContentType) && !json.Valid(t.Payload) {
		return t, &RecordError{Reason: ReasonInvalidJSON, Detail: "content-type promises JSON, the value is not: " + jsonError(t.Payload)}
	}
	return t, nil
}

// setHeader takes one header into t. A header of no meaning to a task is left
// out; one that has a meaning and is malformed is an error, because guessing at
// it would run the task on other terms than its sender asked for.
func (t *Task) setHeader(key, value string) error {
	var err error
	switch key {
	case headerSpecVersion:
		if value != specVersion {
			return fmt.Errorf("version %q, want %s", value, specVersion)
		}
	case headerID:
		if value == "" {
			return fmt.Errorf("empty")
		}
		if err = validText("id", value, MaxIDBytes); err == nil {
			t.ID = value
		}
	case headerType:
		if value == "" {
			return fmt.Errorf("empty")
		}
		if err = validText("type", value, MaxTypeBytes); err == nil {
			t.Type = value
		}
	case headerSource:
		if err = validText("source", value, MaxSourceBytes); err == nil {
			t.Source = value
		}
	case headerTenant:
		if err = validText("tenant", value, MaxTenantBytes); err == nil {
			t.Tenant = value
		}
	case headerTime:
		t.Time, err = parseTime(value)
	case headerDeadline:
		t.Deadline, err = parseTime(value)
	case headerMaxAttempts:
		t.MaxAttempts, err = parseCount(value, 1, MaxAttempts)
	case headerOnBusy:
		t.OnBusy = OnBusy(value)
		if value == "" {
			return fmt.Errorf("empty")
		}
		err = t.OnBusy.Validate()
	case headerRedrive:
		t.Redrive, err = parseCount(value, 0, 1<<30)
	case headerContentType:
		if _, _, err := mime.ParseMediaType(value); err != nil {
			return fmt.Errorf("%q is no media type", value)
		}
		t.ContentType = value
	case headerTraceParent:
		t.TraceParent = value
	case headerTraceState:
		t.TraceState = value
	default:
		name, ok := strings.CutPrefix(key, headerPrefix)
		if !ok || reservedAttribute(name) {
			return nil
		}
		if err := ValidateAttribute(name, value); err != nil {
			return err
		}
		if t.Attributes == nil {
			t.Attributes = make(map[string]string)
		}
		t.Attributes[name] = value
	}
	return err
}

func parseTime(s string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no RFC 3339 time", s)
	}
	return at, nil
}

func parseCount(s string, low, high int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q: want a whole number from %d to %d", s, low, high)
	}
	return n, nil
}

// IsJSON reports whether a content type promises JSON: application/json or any
// type with the suffix +json (RFC 6839).
func IsJSON(contentType string) bool {
	if contentType == "" {
		return false
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == JSON || strings.HasSuffix(mediaType, "+json"))
}

func jsonError(b []byte) string {
	if len(bytes.TrimSpace(b)) == 0 {
		return "it is empty"
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err.Error()
	}
	return "invalid"
}

// derivedNamespace is the UUID namespace of ids that follow from a record's
// place in the log.
var derivedNamespace = [16]byte{0x3d, 0x0c, 0x5b, 0x8e, 0x52, 0x6b, 0x4f, 0x0a, 0x9b, 0x0e, 0x67, 0x1d, 0x2e, 0x0f, 0x7a, 0x51}

// DerivedID returns the id of a task whose record names none: the UUID version
// 5 (RFC 9562) of topic id, partition and offset. Reading the record again
// gives the same id, so a repeat collapses.
func DerivedID(topicID [16]byte, partition int32, offset int64) string {
	var name [len(topicID) + 4 + 8]byte
	copy(name[:], topicID[:])
	binary.BigEndian.PutUint32(name[len(topicID):], uint32(partition)) //nolint:gosec // a bit pattern, not a number
	binary.BigEndian.PutUint64(name[len(topicID)+4:], uint64(offset))  //nolint:gosec // a bit pattern, not a number
	return uuid5(derivedNamespace, name[:])
}

func uuid5(namespace [16]byte, name []byte) string {
	hashed := make([]byte, 0, 64) // on the stack for a short name
	hashed = append(hashed, namespace[:]...)
	hashed = append(hashed, name...)
	u := sha1.Sum(hashed) //nolint:gosec // see the import
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[0:8], u[0:4])
	hex.Encode(s[9:13], u[4:6])
	hex.Encode(s[14:18], u[6:8])
	hex.Encode(s[19:23], u[8:10])
	hex.Encode(s[24:], u[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
