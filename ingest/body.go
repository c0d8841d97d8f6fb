package ingest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"millrace"
)

const (
	acceptedEncodings = "gzip, zstd"
	// maxZstdWindow is what RFC 9659 bids every decoder of HTTP content take.
	maxZstdWindow = 8 << 20
	// maxDiscard bounds what is read of a body that has been refused already.
	maxDiscard = 16 << 20
)

var (
	taskMediaTypes  = []string{millrace.JSON}
	batchMediaTypes = []string{mediaNDJSON, "application/ndjson", "application/jsonl"}
)

const mediaNDJSON = "application/x-ndjson"

// checkMediaType wants one of the types to be named. None at all is not enough:
// a web page of anybody can send such a request across origins.
func checkMediaType(r *http.Request, want []string) *Problem {
	given := r.Header.Get("Content-Type")
	mediaType, params, err := mime.ParseMediaType(given)
	detail := ""
	switch charset := params["charset"]; {
	case given == "":
		detail = "missing; want " + want[0]
	case err != nil || !slices.Contains(want, mediaType):
		detail = fmt.Sprintf("%q; want %s", clip(given), want[0])
	case charset != "" && !strings.EqualFold(charset, "utf-8"):
		detail = fmt.Sprintf("charset %q; want utf-8", clip(charset))
	default:
		return nil
	}
	p := unsupportedMediaType.at(ProblemError{Header: "Content-Type", Detail: detail})
	p.headers = map[string]string{"Accept": want[0]}
	return p
}

// body is a request body, inflated and bounded.
type body struct {
	io.Reader
	close func()
}

// openBody returns the request's body. It bounds the time in which the body has
// to arrive and what of it is read: limit bytes as sent, and one byte more than
// limit once inflated, which readers take for too much.
func (s *Server) openBody(w http.ResponseWriter, r *http.Request, limit int64) (*body, *Problem) {
	if r.ContentLength > limit {
		return nil, bodyTooLarge.problem("%d bytes, at most %d", r.ContentLength, limit)
	}
	control := http.NewResponseController(w)
	// A writer that knows no deadlines is one of a test.
	_ = control.SetReadDeadline(time.Now().Add(s.cfg.BodyTimeout))
	done := func() {
		// The connection goes on being read for the end of the request, and a
		// deadline that passed there would look like the client going away.
		_ = control.SetReadDeadline(time.Time{})
	}
	var in io.Reader = http.MaxBytesReader(nil, r.Body, limit)
	switch encoding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ","))); encoding {
	case "", "identity":
	case "gzip", "x-gzip":
		in = &lazyGzip{in: in}
	case "zstd":
		dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			done()
			return nil, badEncoding.problem("zstd: %v", err)
		}
		in = dec
		reset := done
		done = func() { dec.Close(); reset() }
	default:
		done()
		p := unsupportedEncoding.at(ProblemError{Header: "Content-Encoding", Detail: fmt.Sprintf("%q; want gzip or zstd", clip(encoding))})
		p.headers = map[string]string{"Accept-Encoding": acceptedEncodings}
		return nil, p
	}
	return &body{Reader: io.LimitReader(in, limit+1), close: done}, nil
}

// lazyGzip reads the gzip header at the first read, so that an error of it
// comes the same way as one of the data.
type lazyGzip struct {
	in io.Reader
	z  *gzip.Reader
}

func (g *lazyGzip) Read(p []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = gzip.ErrHeader // nothing is no gzip stream
			}
			return 0, err
		}
		g.z = z
	}
	return g.z.Read(p)
}

// readBody returns the whole body, at most limit bytes of it.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *Problem) {
	b, problem := s.openBody(w, r, limit)
	if problem != nil {
		return nil, problem
	}
	defer b.close()
	var buf bytes.Buffer
	if n := r.ContentLength; n > 0 {
		buf.Grow(int(n) + bytes.MinRead) // bounded by openBody
	}
	if _, err := buf.ReadFrom(b); err != nil {
		return nil, s.bodyProblem(r, err, limit)
	}
	if int64(buf.Len()) > limit {
		return nil, bodyTooLarge.problem("more than %d bytes once inflated", limit)
	}
	return buf.Bytes(), nil
}

// bodyProblem says why a body could not be read.
func (s *Server) bodyProblem(r *http.Request, err error, limit int64) *Problem {
	var tooLarge *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &tooLarge):
		return bodyTooLarge.problem("more than %d bytes", limit)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return bodyTimeout.problem("the body did not arrive within %s", s.cfg.BodyTimeout)
	case r.Header.Get("Content-Encoding") != "":
		return badEncoding.at(ProblemError{Header: "Content-Encoding", Detail: fmt.Sprintf("the body is no valid %s stream: %v", clip(r.Header.Get("Content-Encoding")), err)})
	}
	return incompleteBody.problem("the body ended early: %v", err)
}

// discardBody reads what is left of a body that has been refused, within
// bounds. Many clients send all of a request before they look at the answer; one
// whose connection closed while it was sending would never see it. A client that
// asks first (Expect: 100-continue) has not sent anything yet.
func (s *Server) discardBody(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" || r.Body == nil || r.Body == http.NoBody || r.ContentLength > maxDiscard {
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(min(s.cfg.BodyTimeout, 5*time.Second)))
	_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
	_ = control.SetReadDeadline(time.Time{})
}
