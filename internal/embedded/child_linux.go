package embedded

import "syscall"

// childAttributes lets a child end with its parent, keeps the terminal's Ctrl-C
// from it (this process stops its services after their users, not before) and
// takes root from it.
func childAttributes(acct *account, stop syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: stop}
	if acct != nil {
		attr.Credential = &syscall.Credential{Uid: acct.uid, Gid: acct.gid}
	}
	return attr
}
