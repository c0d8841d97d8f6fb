package kafka

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

func TestTopicWhoseRecordsOutliveCompletionsIsWrong(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		outlived           time.Duration
		retention, segment string
		says               string
	}{
		{14 * day, "604800000", "604800000", ""},
		{14 * day, "604800001", "604800000", "up to 336h0m0.001s"},
		{20 * day, "604800000", "", ""},
		{20 * day, "1814400000", "", "up to 504h0m0s"},
		{1000 * day, "-1", "604800000", "MILLRACE_RETENTION_COMPLETIONS is 24000h"},
		{1000 * day, "9223372036854775807", "604800000", "MILLRACE_RETENTION_COMPLETIONS"},
		{0, "-1", "604800000", ""}, // kept for ever
	} {
		var configs []kadm.Config
		for key, value := range map[string]string{"retention.ms": test.retention, "segment.ms": test.segment} {
			if value != "" {
				configs = append(configs, kadm.Config{Key: key, Value: &value})
			}
		}
		var says strings.Builder
		for _, err := range (Topic{Name: "t", Outlived: test.outlived}).judge(kadm.TopicDetail{}, configs) {
			says.WriteString(err.Error())
		}
		if (says.Len() == 0) != (test.says == "") || !strings.Contains(says.String(), test.says) {
			t.Errorf("%+v: %q", test, says.String())
		}
	}
}
