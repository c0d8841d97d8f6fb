package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/consumer"
	"millrace/internal/kafka"
	"millrace/internal/settings"
	"millrace/statestore"
)

// ExplainConfig says what to explain.
type ExplainConfig struct {
	Settings *settings.Settings
	Log      zerolog.Logger
	TaskID   string
	// MaxRecords bounds how much of the log is searched. 0: nothing.
	MaxRecords int64
	// Progress is told, once a second, how much of the log has been searched.
	Progress func(searched, of int64)
}

// TaskWhereabouts is what all who were asked know of a task.
type TaskWhereabouts struct {
	TaskID string `json:"task_id"`
	// Found says that somebody knows where it is.
	Found bool `json:"found"`
	// Result is its completion. A failed task may have been put back since.
	Result     *millrace.TaskResult   `json:"result,omitempty"`
	DeadLetter *statestore.DeadLetter `json:"dead_letter,omitempty"`
	// Worker has it, as Explanation says.
	Worker      *consumer.WorkerInfo  `json:"worker,omitempty"`
	Explanation *consumer.Explanation `json:"explanation,omitempty"`
	// Record is where it lies in the log, if no worker has it in memory.
	Record *RecordWhereabouts `json:"record,omitempty"`
	// HeldUntil is the time until which it is held back in PostgreSQL, if it is.
	HeldUntil time.Time `json:"held_until,omitzero"`
	// Accepted says that ingest or a worker has left word of it in Redis.
	Accepted bool `json:"accepted,omitempty"`
	// Workers is how many live ones were asked, Silent are those that did not answer.
	Workers int             `json:"workers"`
	Silent  []SilentWorker  `json:"silent,omitempty"`
	Search  *SearchedRecord `json:"search,omitempty"`
	// Problems are the services that could not be asked.
	Problems []string `json:"problems,omitempty"`
}

// SilentWorker is one that did not answer.
type SilentWorker struct {
	consumer.WorkerInfo
	Error string `json:"error"`
}

// RecordWhereabouts is where a record lies that is not committed.
type RecordWhereabouts struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	// Before is how many records of the partition come before it that are not
	// committed.
	Before int64 `json:"before"`
	// Owners are the live workers that own the partition: one, unless it moves or
	// two pools serve its priority.
	Owners []consumer.WorkerInfo `json:"owners"`
}

// SearchedRecord says how much of the log was searched.
type SearchedRecord struct {
	Searched    int64 `json:"searched"`
	Uncommitted int64 `json:"uncommitted"`
}

const (
	// askTimeout bounds each question to a store or a worker.
	askTimeout = 5 * time.Second
	maxExplain = 1 << 20
	// searchTimeout bounds the search of the log.
	searchTimeout = 5 * time.Minute
)

// Explain finds out where a task is and what it waits for: from its completion,
// from the workers that live, and from what of the log is not committed. What
// cannot be asked is a problem that the answer tells of.
func Explain(ctx context.Context, cfg ExplainConfig) (TaskWhereabouts, error) {
	x := &explainer{cfg: cfg, http: &http.Client{Timeout: askTimeout}, TaskWhereabouts: TaskWhereabouts{TaskID: cfg.TaskID}}
	defer x.http.CloseIdleConnections()
	var err error
	if x.pool, err = openPostgres(ctx, cfg.Settings); err != nil {
		return x.TaskWhereabouts, err
	}
	defer x.pool.Close()
	if x.redis, err = openRedis(cfg.Settings); err != nil {
		return x.TaskWhereabouts, err
	}
	defer func() { _ = x.redis.Close() }()
	if x.store, err = statestore.New(statestore.Config{Pool: x.pool, Redis: x.redis, KeyPrefix: cfg.Settings.RedisPrefix()}); err != nil {
		return x.TaskWhereabouts, err
	}
	x.find(ctx)
	return x.TaskWhereabouts, ctx.Err()
}

type explainer struct {
	TaskWhereabouts
	cfg     ExplainConfig
	pool    *pgxpool.Pool
	redis   redis.UniversalClient
	store   *statestore.Store
	http    *http.Client
	workers []consumer.WorkerInfo
}

func (x *explainer) find(ctx context.Context) {
	if x.completed(ctx) {
		return
	}
	x.listWorkers(ctx)
	if x.asked(ctx, x.workers, nil) {
		return
	}
	if x.searched(ctx) {
		return
	}
	// It may have moved on between the questions.
	_ = x.asked(ctx, x.workers, nil) || x.completed(ctx)
}

// oneLine puts errors of several lines, as pgx has them, into one.
var oneLine = strings.NewReplacer(":\n\t", ": ", "\n\t", "; ", "\n", "; ")

func (x *explainer) problem(what string, err error) {
	text := what + ": " + oneLine.Replace(err.Error())
	if !slices.Contains(x.Problems, text) {
		x.Problems = append(x.Problems, text)
	}
}

// completed asks PostgreSQL. A task whose last run has failed and was put back
// goes on.
func (x *explainer) completed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	result, err := x.store.Task(ctx, x.cfg.TaskID)
	switch {
	case errors.Is(err, millrace.ErrNotFound):
		return false
	case err != nil:
		x.problem("completions and hints", err)
		return false
	case !result.RunAt.IsZero():
		x.HeldUntil, x.Found = result.RunAt, true
		return true
	case !result.Status.Final():
		x.Accepted = true
		return false
	}
	x.Result, x.Found = &result, true
	if result.Status != millrace.StatusFailed {
		return true
	}
	letters, _, err := statestore.NewDeadLetterStore(x.pool).List(ctx, statestore.DeadLetterFilter{TaskID: x.cfg.TaskID, Redriven: true}, maxLetters)
	if err != nil {
		x.problem("dead letters", err)
		return true
	}
	if len(letters) == 0 {
		return true // dropped
	}
	x.DeadLetter = &letters[len(letters)-1]
	return x.DeadLetter.RedrivenAs == 0
}

// maxLetters is more than a task can have been put back.
const maxLetters = 1000

func (x *explainer) listWorkers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var err error
	if x.workers, err = consumer.Workers(ctx, x.redis, x.cfg.Settings.RedisPrefix()); err != nil {
		x.problem("workers in Redis", err)
	}
	x.Workers = len(x.workers)
}

// asked asks workers at once, and takes the answer of one that has the task.
func (x *explainer) asked(ctx context.Context, workers []consumer.WorkerInfo, at *consumer.Place) bool {
	answers := make([]consumer.Explanation, len(workers))
	errs := make([]error, len(workers))
	var group sync.WaitGroup
	limit := make(chan struct{}, 32)
	for i := range workers {
		group.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			answers[i], errs[i] = x.ask(ctx, &workers[i], at)
		})
	}
	group.Wait()
	x.Silent = nil
	found := -1
	for i := range workers {
		switch {
		case errs[i] != nil:
			x.Silent = append(x.Silent, SilentWorker{workers[i], errs[i].Error()})
		case answers[i].State == consumer.Absent:
		case found < 0 || answers[i].State == consumer.Running:
			found = i
		}
	}
	if found < 0 {
		return false
	}
	x.Found, x.Worker, x.Explanation = true, &workers[found], &answers[found]
	return true
}

func (x *explainer) ask(ctx context.Context, w *consumer.WorkerInfo, at *consumer.Place) (consumer.Explanation, error) {
	var answer consumer.Explanation
	if w.Addr == "" {
		return answer, errors.New("it serves no HTTP")
	}
	query := url.Values{"incarnation": {w.Incarnation}}
	if at != nil {
		query.Set("topic", at.Topic)
		query.Set("partition", strconv.Itoa(int(at.Partition)))
		query.Set("offset", strconv.FormatInt(at.Offset, 10))
	}
	where := "http://" + w.Addr + "/v1/tasks/" + url.PathEscape(x.cfg.TaskID) + "/explain?" + query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return answer, err
	}
	resp, err := x.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return answer, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxExplain))
	if err != nil {
		return answer, err
	}
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("%s: %.200s", resp.Status, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("decode answer: %w", err)
	}
	if answer.Incarnation != w.Incarnation {
		return answer, errors.New("another worker serves this address")
	}
	return answer, nil
}

// searched looks for the task in what is not committed, and asks the owners of
// its partition about its record.
func (x *explainer) searched(ctx context.Context) bool {
	s := x.cfg.Settings
	if x.cfg.MaxRecords == 0 {
		return false
	}
	cl, err := kafka.Dial(ctx, s, "explain", x.cfg.Log, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		x.problem("the log", err)
		return false
	}
	defer cl.Close()
	limited, cancel := context.WithTimeout(ctx, searchTimeout)
	record, err := x.search(limited, cl)
	cancel()
	if err != nil {
		x.problem("the log", err)
	}
	if record == nil {
		return false
	}
	record.Owners = []consumer.WorkerInfo{}
	for _, w := range x.workers {
		serves := slices.ContainsFunc(w.Priorities, func(p millrace.Priority) bool { return s.TaskTopic(p) == record.Topic })
		if serves && slices.Contains(w.Partitions, record.Partition) {
			record.Owners = append(record.Owners, w)
		}
	}
	silent := x.Silent
	x.asked(ctx, record.Owners, &consumer.Place{Topic: record.Topic, Partition: record.Partition, Offset: record.Offset})
	x.Silent = silent
	if x.Explanation != nil && x.Explanation.State == consumer.Done && x.completed(ctx) {
		return true
	}
	x.Found, x.Record = true, record
	return true
}

func (x *explainer) search(ctx context.Context, cl *kgo.Client) (*RecordWhereabouts, error) {
	s, adm := x.cfg.Settings, kadm.NewClient(cl)
	others, err := kafka.OtherTaskTopics(ctx, adm, s)
	if err != nil {
		return nil, err
	}
	topics := append(s.TaskTopics(), others...)
	lag, err := kafka.TaskLag(ctx, adm, s, topics...)
	if err != nil {
		return nil, err
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	from := make(map[string]map[int32]kgo.Offset)
	begin, missing := make(map[consumer.Place]int64), make(map[consumer.Place]int64)
	x.Search = &SearchedRecord{}
	for _, p := range lag.Partitions {
		first, ok1 := starts.Lookup(p.Topic, p.Partition)
		last, ok2 := ends.Lookup(p.Topic, p.Partition)
		if !ok1 || !ok2 || first.Err != nil || last.Err != nil {
			x.problem("the log", fmt.Errorf("%s/%d could not be searched", p.Topic, p.Partition))
			continue
		}
		at := first.Offset
		if p.Committed != nil {
			at = max(at, *p.Committed)
		}
		if at >= last.Offset {
			continue
		}
		key := consumer.Place{Topic: p.Topic, Partition: p.Partition}
		begin[key], missing[key] = at, last.Offset
		x.Search.Uncommitted += last.Offset - at
		if from[p.Topic] == nil {
			from[p.Topic] = make(map[int32]kgo.Offset)
		}
		from[p.Topic][p.Partition] = kgo.NewOffset().At(at)
	}
	if len(missing) == 0 {
		return nil, nil
	}
	cl.AddConsumePartitions(from)
	told := time.Now()
	for len(missing) > 0 && x.Search.Searched < x.cfg.MaxRecords {
		fetches := cl.PollRecords(ctx, 10_000)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		var found *RecordWhereabouts
		fetches.EachTopic(func(t kgo.FetchTopic) {
			t.EachPartition(func(p kgo.FetchPartition) {
				key := consumer.Place{Topic: t.Topic, Partition: p.Partition}
				for _, r := range p.Records {
					if r.Offset >= missing[key] {
						break
					}
					x.Search.Searched++
					if found == nil && !r.Attrs.IsControl() && taskID(r, t) == x.cfg.TaskID {
						found = &RecordWhereabouts{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Before: r.Offset - begin[key]}
					}
				}
				if n := len(p.Records); n > 0 && p.Records[n-1].Offset >= missing[key]-1 {
					delete(missing, key)
				}
			})
		})
		if found != nil {
			return found, nil
		}
		if x.cfg.Progress != nil && time.Since(told) >= time.Second {
			told = time.Now()
			x.cfg.Progress(x.Search.Searched, x.Search.Uncommitted)
		}
	}
	return nil, nil
}

// taskID returns the id of a record's task, as a worker would find it.
func taskID(r *kgo.Record, t kgo.FetchTopic) string {
	for _, h := range r.Headers {
		if h.Key == "ce_id" && len(h.Value) > 0 {
			return string(h.Value)
		}
	}
	return millrace.DerivedID(consumer.TopicID(t), r.Partition, r.Offset)
}
