// Command millrace runs AI-agent tasks at scale on Kafka: all of its parts, and
// the commands to look after them.
package main

import "os"

func main() {
	os.Exit(run(&cli{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ(), exit: os.Exit,
	}, os.Args[1:]))
}
