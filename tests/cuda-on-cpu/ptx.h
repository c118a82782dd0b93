// From PTX to C++.
#pragma once
#include <map>
#include <string>
#include <vector>

// A parameter's place among the bytes of all.
struct Parameter {
    std::string name;
    unsigned offset, bytes;
};

// A variable of a module or of a function, or a parameter of a call.
struct Variable {
    std::string space, name, text;
    unsigned align = 1, offset = 0;
    unsigned long long bytes = 0;
};

// Of a declaration, after its space: ".align 8 .b8 name[16]".
Variable variable(const std::string &space, const std::string &declared);

struct Function {
    std::string name;
    bool entry = false;
    std::vector<Parameter> parameters, results;
    unsigned parameter_bytes = 0, max_threads = 1024;
    // Statements without their semicolons; "{", "}" and "label:" are of their own.
    std::vector<std::string> body;
};

// A kernel in C++.
struct Translated {
    std::string text;
    unsigned shared_bytes = 0;
    bool together = false;
};

class Module {
public:
    // Throws std::runtime_error where the text is not understood.
    explicit Module(const std::string &ptx);
    const Function *entry(const std::string &name) const;
    std::vector<std::string> entries() const;
    Translated translated(const Function &entry) const;

private:
    friend class Writer;
    std::map<std::string, Function> functions;
    std::map<std::string, Variable> variables;
};
