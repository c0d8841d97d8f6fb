// Command orders is a worker whose handler keeps tables of its own in Millrace's
// database (schema.sql makes them): a row is there if and only if its task is
// complete, and once however often the task was run.
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/statestore"
	"millrace/worker"
)

func main() { worker.Main(millrace.HandlerFunc(place)) }

// snippet:place
func place(ctx context.Context, turn *millrace.Turn) error {
	var order struct {
		Item     string
		Quantity int
	}
	if err := turn.Decode(&order); err != nil {
		return err
	}
	tx, err := statestore.Tx(ctx, turn) // calls of LLMs and tools come before, as steps
	if err != nil {
		return err
	}
	var left int
	const take = `UPDATE shop.stock SET quantity = quantity - $2 WHERE item = $1 AND quantity >= $2 RETURNING quantity`
	err = tx.QueryRow(ctx, take, order.Item, order.Quantity).Scan(&left)
	if errors.Is(err, pgx.ErrNoRows) {
		err = millrace.Permanent(fmt.Errorf("there are not %d of %q left", order.Quantity, order.Item))
	}
	if err != nil {
		return err
	}
	const insert = `INSERT INTO shop.orders (task, item, quantity) VALUES ($1, $2, $3)`
	if _, err := tx.Exec(ctx, insert, turn.Task().ID, order.Item, order.Quantity); err != nil {
		return err
	}
	err = turn.Append(millrace.Message{Role: millrace.RoleAssistant, Content: fmt.Sprintf("ordered %d of %s", order.Quantity, order.Item)})
	return errors.Join(err, turn.Result(map[string]int{"left": left})) // nil commits all of it
}

// snippet:end
