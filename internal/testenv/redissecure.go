package testenv

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// SecureRedis is a server that speaks TLS alone, to those who have a certificate of its authority, and knows the users of an ACL file.
type SecureRedis struct {
	*Server
	// CAFile, CertFile and KeyFile are what a client needs.
	CAFile, CertFile, KeyFile string
	// Admin may do everything.
	Admin *redis.Client
}

// StartSecureRedis starts one for this test alone. The users come on top of one for the test itself.
func StartSecureRedis(t testing.TB, users string) *SecureRedis {
	t.Helper()
	const password = "admin"
	ca := newAuthority(t)
	dir := t.TempDir()
	s := &SecureRedis{
		CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.key"),
	}
	serverCert, serverKey := ca.issue(t, "server")
	clientCert, clientKey := ca.issue(t, "client")
	for name, content := range map[string][]byte{s.CAFile: ca.pem, s.CertFile: clientCert, s.KeyFile: clientKey} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	options := func(server *Server) *redis.Options {
		return &redis.Options{
			Addr: server.Address, Username: "admin", Password: password,
			TLSConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		}
	}
	s.Server = dedicated(t, spec{
		image: redisImage,
		env: map[string]string{
			"CA": string(ca.pem), "CERT": string(serverCert), "KEY": string(serverKey),
			"USERS": users + "\nuser admin on >" + password + " ~* &* +@all\n",
		},
		configure: func(sp *spec, server *Server) {
			sp.args = []string{"sh", "-c", `cd /data && for f in CA CERT KEY USERS; do eval "printf '%s' \"\$$f\"" >$f; done
exec redis-server ` + listening(sp) + ` --save '' --port 0 --tls-port ` + portOf(server.Address) + ` --tls-ca-cert-file CA --tls-cert-file CERT --tls-key-file KEY --aclfile USERS`}
			server.URL = "rediss://" + server.Address + "/0"
		},
		ping: func(ctx context.Context, server *Server) error {
			options := options(server)
			options.MaxRetries, options.DialerRetries = -1, 1
			client := redis.NewClient(options)
			defer func() { _ = client.Close() }()
			return client.Ping(ctx).Err()
		},
	})
	s.Admin = redis.NewClient(options(s.Server))
	t.Cleanup(func() { _ = s.Admin.Close() })
	return s
}

// authority signs certificates of 127.0.0.1 that are good for an hour.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := certificate("authority")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(name), a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
}
