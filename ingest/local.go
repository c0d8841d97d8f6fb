package ingest

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// checkLocal refuses what a web page of somebody else makes a browser on this
// machine send. A page whose name was made to resolve to a loopback address
// (DNS rebinding) is of the same origin to the browser, but its name is in Host.
func checkLocal(r *http.Request) *Problem {
	if !isLocal(r.Host) {
		return foreignHost.at(ProblemError{Header: "Host", Detail: strconv.Quote(clip(r.Host)) + " is no name of this machine's loopback address"})
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || !strings.EqualFold(u.Host, r.Host) {
			return foreignOrigin.at(ProblemError{Header: "Origin", Detail: strconv.Quote(clip(origin)) + " is not this server"})
		}
	}
	return nil
}

// isLocal reports whether the host of a request can only mean this machine. A
// request without one is no browser's.
func isLocal(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
