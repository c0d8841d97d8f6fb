//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// The master dies under load, with what it has not sent to its replica: sentinels
// make the replica the master, and the work goes on there.
func TestRedisSentinel(t *testing.T) {
	servers := testenv.StartRedisSentinel(t)
	p := newPipeline(t, services{redis: servers.URL, redisMode: "sentinel"}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	workers := p.startWorkers(2)
	p.startIngest()
	const conversations, turns = 60, 5
	running := p.send(load{conversations: conversations, turns: turns, rate: 100})
	p.awaitCompletions(conversations * turns / 3)
	killed := time.Now()
	if err := servers.KillMaster(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := p.check(t, running.wait())
	t.Logf("all done %s after the master was killed", time.Since(killed).Round(time.Millisecond))
	e.mustHaveRunOnce(t)
	if master, err := servers.Master(t.Context()); err != nil || master == servers.Address {
		t.Errorf("the master is %s, %v: nobody has taken over", master, err)
	}
	for _, w := range workers {
		w.awaitReadyz()
	}
}

// The user that deployments/redis/users.acl describes, over TLS with a client
// certificate, may do what Millrace does and is refused nothing.
func TestRedisWithTheLeastRights(t *testing.T) {
	rules, err := os.ReadFile("../deployments/redis/users.acl")
	if err != nil {
		t.Fatal(err)
	}
	const password = "of-the-test"
	topics := testenv.TopicPrefix(t)
	prefix := strings.TrimSuffix(topics, ".") + ":"
	users := strings.NewReplacer("CHANGE-ME", password, "~millrace:*", "~"+prefix+"* ~millrace:limit:*", "&millrace:", "&"+prefix).Replace(string(rules))
	server := testenv.StartSecureRedis(t, users)
	if err := server.Admin.ACLLogReset(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	_, host, _ := strings.Cut(server.URL, "://")
	echo := newWatchfulEcho(t)
	p := newPipeline(t, services{redis: "rediss://millrace@" + host, prefix: topics}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+echo.url, "MILLRACE_SLOTS=16",
		"MILLRACE_REDIS_PASSWORD="+password, "MILLRACE_REDIS_CA_FILE="+server.CAFile, "MILLRACE_REDIS_CERT_FILE="+server.CertFile, "MILLRACE_REDIS_KEY_FILE="+server.KeyFile)
	pools := p.startPools()
	p.startIngest()
	const conversations, turns = 40, 5
	running := p.send(load{conversations: conversations, turns: turns, rate: 200})
	p.awaitCompletions(conversations * turns / 3)
	pools["bulk"][0].kill()
	p.check(t, running.wait())
	p.cancel(t, "unheard-of")
	refused, err := server.Admin.ACLLog(t.Context(), 10).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range refused {
		if r.Object == "client|setinfo" {
			continue // which Redis 7.0 does not know, and its clients can do without
		}
		t.Errorf("refused: %s %s of %s in %s", r.Reason, r.Object, r.Username, r.Context)
	}
	if t.Failed() {
		return
	}
	if keys, err := server.Admin.DBSize(t.Context()).Result(); err != nil || keys == 0 {
		t.Errorf("the server has %d keys, %v: nobody has used it", keys, err)
	}
}
