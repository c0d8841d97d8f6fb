package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"millrace"
	"millrace/llm"
	"millrace/ratelimit"
)

const (
	// Header carries the token of the turn that a call is made for.
	Header = "Millrace-Turn"
	// ReplayedHeader is "true" on an answer that comes from the journal.
	ReplayedHeader = "Millrace-Replayed"
	// DefaultMaxBody bounds a request's body.
	DefaultMaxBody = 8 << 20
	// maxAnswer bounds what a provider may answer.
	maxAnswer = 64 << 20
)

// Config configures a [Proxy].
type Config struct {
	// Client calls the providers. Required.
	Client *llm.Client
	// Turns are the turns that calls are made for. Required.
	Turns *Turns
	// MaxBody bounds a request's body in bytes. 0 means [DefaultMaxBody].
	MaxBody int64

	Logger zerolog.Logger
}

// Proxy is an [http.Handler] that speaks the providers' APIs.
type Proxy struct {
	client  *llm.Client
	turns   *Turns
	maxBody int64
	log     zerolog.Logger
	mux     *http.ServeMux
}

// New returns a proxy. Serve it on a listener of [Listen].
func New(cfg Config) (*Proxy, error) {
	var errs []error
	if cfg.Client == nil {
		errs = append(errs, errors.New("client: missing"))
	}
	if cfg.Turns == nil {
		errs = append(errs, errors.New("turns: missing"))
	}
	if cfg.MaxBody < 0 {
		errs = append(errs, fmt.Errorf("max body %d: negative", cfg.MaxBody))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("llm proxy: %w", err)
	}
	p := &Proxy{client: cfg.Client, turns: cfg.Turns, maxBody: cfg.MaxBody, log: cfg.Logger, mux: http.NewServeMux()}
	if p.maxBody == 0 {
		p.maxBody = DefaultMaxBody
	}
	p.mux.HandleFunc("POST /v1/chat/completions", p.serve(openAI{}))
	p.mux.HandleFunc("POST /v1/messages", p.serve(anthropic{}))
	return p, nil
}

// ServeHTTP answers a call.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Proxy) serve(api protocol) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		live, ok := p.turns.find(r.Header.Get(Header))
		if !ok {
			api.writeError(w, http.StatusUnauthorized, missingTurn(r.Header.Get(Header)))
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, p.maxBody))
		if err != nil {
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				api.writeError(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request body is larger than %d bytes", p.maxBody))
			}
			return // otherwise the agent is gone
		}
		c, err := p.parse(api, body)
		if err != nil {
			api.writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		c.header, c.turn = r.Header, live.turn

		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		stop := context.AfterFunc(live.over, cancel)
		defer stop()
		p.answer(ctx, w, c)
	}
}

// call is a parsed request.
type call struct {
	api       protocol
	turn      *millrace.Turn
	target    llm.Target
	header    http.Header
	body      []byte // as the agent sent it
	upstream  []byte // as the provider gets it
	stream    bool
	maxTokens int64
	// hideUsage drops the usage chunk from a stream that the agent did not ask
	// for and that the proxy needs.
	hideUsage bool
}

func (p *Proxy) parse(api protocol, body []byte) (*call, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("the request body is no JSON object: %w", err)
	}
	var known struct {
		Model               string `json:"model"`
		Stream              bool   `json:"stream"`
		MaxTokens           int64  `json:"max_tokens"`
		MaxCompletionTokens int64  `json:"max_completion_tokens"`
		StreamOptions       struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
	if err := json.Unmarshal(body, &known); err != nil {
		return nil, fmt.Errorf("the request body is malformed: %w", err)
	}
	target, err := p.client.TargetOfKind(known.Model, api.kind())
	if err != nil {
		return nil, err
	}
	c := &call{
		api: api, target: target, body: body, upstream: body, stream: known.Stream,
		maxTokens: max(known.MaxTokens, known.MaxCompletionTokens, 0),
	}
	changes := make(map[string]any)
	if target.Model != known.Model {
		changes["model"] = target.Model
	}
	if api.kind() == llm.OpenAI && c.stream && !known.StreamOptions.IncludeUsage {
		options := make(map[string]any)
		if raw, ok := fields["stream_options"]; ok {
			if err := json.Unmarshal(raw, &options); err != nil {
				return nil, fmt.Errorf("stream_options: %w", err)
			}
		}
		if options == nil { // null
			options = make(map[string]any)
		}
		options["include_usage"] = true
		changes["stream_options"] = options
		c.hideUsage = true
	}
	for name, value := range changes {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(changes) > 0 {
		if c.upstream, err = json.Marshal(fields); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	return c, nil
}

// answer makes the call, or takes its answer from the journal.
func (p *Proxy) answer(ctx context.Context, w http.ResponseWriter, c *call) {
	out := &output{w: w, stream: c.stream}
	ran := false
	stored, err := c.turn.Step(ctx, c.api.step(), c.body, func(ctx context.Context) (millrace.StepResult, error) {
		ran = true
		return p.call(ctx, c, out)
	})
	switch {
	case err == nil && !ran:
		w.Header().Set(ReplayedHeader, "true")
		out.write(stored)
	case err == nil && !c.stream:
		out.write(stored)
	case err == nil:
		if err := out.writeChunk(out.last); err != nil {
			p.log.Debug().Err(err).Msg("the agent left before the end of its stream")
		}
	case out.begun:
		p.log.Warn().Err(err).Str("task", c.turn.Task().ID).Msg("a stream was cut short")
		// The agent's SDK must not take what it got for a whole answer.
		panic(http.ErrAbortHandler)
	default:
		p.fail(ctx, w, c, err)
	}
}

// fail tells the agent why there is no answer.
func (p *Proxy) fail(ctx context.Context, w http.ResponseWriter, c *call, err error) {
	var upstream *upstreamError
	var mismatch *millrace.StepMismatchError
	var delayed *millrace.RetryAfterError
	if errors.As(err, &delayed) && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(delayed.Delay.Seconds()+0.999), 10))
	}
	switch {
	case errors.As(err, &upstream):
		copyHeaders(w.Header(), upstream.header, answerHeaders)
		w.WriteHeader(upstream.status)
		_, _ = w.Write(upstream.body) // the agent may be gone
	case ctx.Err() != nil:
		c.api.writeError(w, http.StatusServiceUnavailable, "the turn is over or the agent has left")
	case errors.As(err, &mismatch):
		c.api.writeError(w, http.StatusConflict, err.Error())
	case errors.Is(err, ratelimit.ErrTooLarge):
		c.api.writeError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ratelimit.ErrUnavailable):
		w.Header().Set("Retry-After", "1")
		c.api.writeError(w, http.StatusServiceUnavailable, err.Error())
	default:
		p.log.Warn().Err(err).Str("task", c.turn.Task().ID).Msg("a call failed")
		c.api.writeError(w, http.StatusBadGateway, err.Error())
	}
}

func missingTurn(token string) string {
	text := "The header " + Header + " is missing."
	if token != "" {
		text = "The header " + Header + " names no turn that is running."
	}
	return text + " Send the value of the " + Header + " header of the request that Millrace made for this turn, " +
		"with every call, while that request is being answered: in Python, OpenAI(default_headers={\"" + Header + "\": ...})."
}

// The headers that pass the proxy. All others stay where they are: the agent's
// credentials above all.
var (
	requestHeaders = []string{"Content-Type", "Accept", "User-Agent", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta"}
	answerHeaders  = []string{"Content-Type", "Retry-After", "Retry-After-Ms", "X-Request-Id", "Request-Id", "X-Should-Retry"}
)

func copyHeaders(to, from http.Header, names []string) {
	for _, name := range names {
		if values := from.Values(name); len(values) > 0 {
			to[name] = values
		}
	}
	for name, values := range from {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-ratelimit-") || strings.HasPrefix(lower, "anthropic-ratelimit-") {
			to[name] = values
		}
	}
}
