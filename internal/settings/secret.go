package settings

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Secret is text that does not show when printed, logged or encoded.
type Secret string

const masked = "***"

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask(string(s))
}

// GoString hides the text from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText hides the text from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal returns the text.
func (s Secret) Reveal() string { return string(s) }

// mask hides what is secret in a value: of a URL user and query, otherwise all.
// The URL of a database keeps its user and the parameters that are no secret.
func mask(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return masked
	}
	database := slices.Contains(databaseSchemes, u.Scheme)
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), masked)
	} else if u.User != nil && !database {
		u.User = url.User(masked) // a token is often given as the user
	}
	if u.RawQuery != "" {
		query := u.Query()
		for name := range query {
			if !database || isPassword(name) {
				query.Set(name, masked)
			}
		}
		if u.RawQuery = query.Encode(); u.RawQuery == "" {
			u.RawQuery = masked // nothing that could be read
		}
	}
	if u.Fragment != "" {
		u.Fragment, u.RawFragment = masked, ""
	}
	return strings.ReplaceAll(u.String(), url.QueryEscape(masked), masked)
}

var databaseSchemes = []string{"postgres", "postgresql", "redis", "rediss"}

// isPassword reports whether a parameter of a URL holds one, by its name.
func isPassword(name string) bool { return strings.Contains(strings.ToLower(name), "password") }

// MaskURL returns a URL without what may be secret in it. Text in which nothing
// can be is returned as it is, so that a message about it stays readable.
func MaskURL(value string) string {
	if !strings.ContainsAny(value, "@?#") {
		return value
	}
	return mask(value)
}

// maxSecretBytes bounds what is read from a file that should hold a password.
const maxSecretBytes = 64 << 10

// secret returns the value of the secret setting name, from its variable or the
// file that name_FILE names.
func (l *loader) secret(name string) string {
	value, path := l.env[name], l.env[name+"_FILE"]
	if path == "" {
		return value
	}
	if value != "" {
		l.problem(name+"_FILE", strconv.Quote(path), "%s%s is set as well; want one of the two", Prefix, name)
		return value
	}
	text, err := readSecret(path)
	if err != nil {
		l.problem(name+"_FILE", strconv.Quote(path), "%v", err)
	}
	return text
}

func readSecret(path string) (string, error) {
	if err := readable(path); err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("want a readable file: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	content, err := io.ReadAll(io.LimitReader(file, maxSecretBytes+1))
	if err != nil {
		return "", fmt.Errorf("want a readable file: %w", err)
	}
	if len(content) > maxSecretBytes {
		return "", fmt.Errorf("want a file of at most %d bytes", maxSecretBytes)
	}
	text := strings.TrimRight(string(content), "\r\n")
	if text == "" {
		return "", fmt.Errorf("want a file that holds the secret, it is empty")
	}
	return text, nil
}
